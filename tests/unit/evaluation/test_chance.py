"""Scores beside guessing: intervals, verdicts, and the chance of retrieval."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lakeclip.evaluation.chance import compare_with_chance, find_stuck_loss, recall_chance
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.evaluation.zeroshot import ZeroShotResult


def test_the_first_model_of_a_newcomer_is_guessing() -> None:
    """400 photos, of which 20 are held out: 5.0% R@1 is what guessing reaches."""
    standing = compare_with_chance(0.05, 1 / 20, 20)
    assert str(standing) == "5.0%, 1.0× chance (5.0%), 95% interval 0.9% to 23.6%: guessing"
    assert standing.is_guessing
    assert standing.to_json()["verdict"] == "guessing"


@pytest.mark.parametrize(
    ("share", "chance", "num", "verdict"),
    [
        (0.05, 0.05, 20, "guessing"),
        (0.0, 0.05, 20, "guessing"),
        (0.10, 0.05, 20, "guessing"),
        (0.30, 0.05, 20, "learning"),
        (0.06, 0.05, 100, "guessing"),
        (0.06, 0.05, 10_000, "learning"),
        (0.02, 0.05, 10_000, "below chance"),
        (1.0, 1.0, 10, "undecidable"),
        (1.0, 1.5, 10, "undecidable"),
        (1.0, 0.5, 1, "guessing"),
    ],
)
def test_verdict_is_the_interval_s(share: float, chance: float, num: int, verdict: str) -> None:
    standing = compare_with_chance(share, chance, num)
    assert standing.verdict == verdict
    assert str(standing).endswith(verdict) or verdict == "undecidable"


def test_no_samples_are_no_score() -> None:
    with pytest.raises(ValueError, match="0 samples"):
        compare_with_chance(0.0, 0.1, 0)


@pytest.mark.parametrize(("candidates", "positives"), [(1, 1), (4, 1), (6, 2), (7, 5), (12, 3)])
def test_recall_of_guessing_is_the_share_of_draws_with_a_positive(candidates: int, positives: int) -> None:
    for k in range(1, candidates + 3):
        draws = list(combinations(range(candidates), min(k, candidates)))
        expected = sum(any(item < positives for item in draw) for draw in draws) / len(draws)
        assert recall_chance(k, candidates, positives) == pytest.approx(expected)


def test_retrieval_knows_its_chance() -> None:
    """A model that maps everything to one point scores exactly chance, at every k and with several captions."""
    image_of_text = torch.tensor([0, 0, 0, 1, 2, 2, 4])
    images, texts = F.normalize(torch.ones(5, 4), dim=1), F.normalize(torch.ones(7, 4), dim=1)
    result = retrieval_metrics(images, texts, image_of_text)
    for ranking, num in ((result.image_to_text, 4), (result.text_to_image, 7)):
        assert ranking.num_queries == num
        for k, recall in ranking.recall.items():
            assert ranking.chance[k] == pytest.approx(recall)
            assert ranking.standing(k).verdict == ("undecidable" if recall == 1 else "guessing")
    assert result.text_to_image.chance == {1: pytest.approx(0.2), 5: 1.0, 10: 1.0}
    assert result.to_json()["chance"]["text_to_image"]["R@10"] == 1.0
    assert result.to_json()["verdict"] == {"image_to_text_R@1": "guessing", "text_to_image_R@1": "guessing"}


def test_a_model_that_finds_all_of_many_is_learning() -> None:
    features = torch.eye(40)
    assert retrieval_metrics(features, features, torch.arange(40)).text_to_image.standing().verdict == "learning"


def _zero_shot(confusion: list[list[int]]) -> ZeroShotResult:
    counts = np.array(confusion)
    names = tuple("abcdefgh"[: len(counts)])
    return ZeroShotResult(names, counts, float(np.trace(counts) / counts.sum()), 1.0, TemplateSet("t", "", ("{}",)))


def test_always_the_most_frequent_class_is_guessing() -> None:
    result = _zero_shot([[90, 0, 0], [5, 0, 0], [5, 0, 0]])
    assert result.top1 == 0.9
    assert result.top1 > result.chance
    assert result.standing.verdict == "guessing"
    assert result.standing.chance == pytest.approx(0.9)
    assert _zero_shot([[80, 5, 5], [0, 5, 0], [0, 0, 5]]).standing.verdict == "learning"
    assert _zero_shot([[20, 5], [5, 20]]).to_json()["verdict"] == "learning"


def test_a_loss_that_stays_at_ln_batch_is_stuck() -> None:
    stuck = find_stuck_loss([5.1, 4.9] + [4.84] * 60, 128)
    assert stuck is not None
    assert str(stuck) == "its loss stayed at 4.84, where guessing is (ln 128 = 4.85)"
    assert find_stuck_loss([4.9, 4.8, *np.linspace(4.7, 2.0, 60)], 128) is None
    assert find_stuck_loss([], 128) is None
    assert find_stuck_loss([0.1], 1) is None


def test_a_loss_that_begins_at_zero_is_stuck() -> None:
    stuck = find_stuck_loss([0.0] * 30, 8)
    assert "there was nothing to learn" in str(stuck)
    assert find_stuck_loss([math.log(8), 1.0, *[1e-5] * 30], 8) is None, "learned by heart"
