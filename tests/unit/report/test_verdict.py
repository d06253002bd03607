"""Verdicts on runs from their curves and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import RetrievalResult, retrieval_metrics
from lakeclip.evaluation.run import ZeroShotTestResult
from lakeclip.evaluation.zeroshot import ZeroShotResult
from lakeclip.report.curves import Curves
from lakeclip.report.verdict import judge_run

LINEAGE: dict[str, Any] = {
    "config": {"loss": {"objective": "softmax", "label_smoothing": 0.0}, "data": {"lake": "my.lake", "batch_size": 64}},
    "data": {"train_rows": 380},
    "parts": [{"step": 0, "batch_size": 64, "world_size": 2}],
}
FLAT: Curves = {"train/loss": [(step, 4.85) for step in range(40)]}
FALLING: Curves = {"train/loss": [(step, 4.85 - step / 10) for step in range(40)]}


def retrieval(num: int, *, learned: bool) -> RetrievalResult:
    images = torch.eye(num)
    texts = images if learned else torch.roll(images, 1, dims=0)
    return retrieval_metrics(images, texts, torch.arange(num))


def test_a_stuck_loss_is_named_with_the_next_command() -> None:
    verdict = judge_run(LINEAGE, FLAT, retrieval=retrieval(20, learned=False))
    assert verdict is not None
    first, advice = str(verdict).split("\n")
    assert first.startswith("the model is guessing: its loss stayed at 4.85, where guessing is (ln 128 = 4.85)")
    assert "text → image R@1 is 0.0%, 0.0× chance (5.0%)" in first
    assert "lakeclip finetune --from NAME --lake my.lake" in advice
    assert "more pairs than 380" in advice


def test_a_stuck_loss_alone_is_enough() -> None:
    verdict = judge_run(LINEAGE, FLAT)
    assert verdict is not None
    assert verdict.headline == "No better than guessing"


def test_scores_above_chance_are_no_guessing() -> None:
    assert judge_run(LINEAGE, FALLING, retrieval=retrieval(20, learned=True)) is None
    assert judge_run(LINEAGE, FLAT, retrieval=retrieval(20, learned=True)) is None
    assert judge_run(LINEAGE, FALLING) is None, "no scores, and the loss fell"


def test_few_validation_rows_are_named_as_the_reason() -> None:
    verdict = judge_run(LINEAGE, FALLING, retrieval=retrieval(8, learned=False))
    assert verdict is not None
    assert verdict.what.startswith("the model cannot be told from guessing on 8 validation rows")
    assert "--val-fraction" in verdict.advice


def test_scores_at_chance_on_many_rows_are_guessing() -> None:
    verdict = judge_run(LINEAGE, FALLING, retrieval=retrieval(200, learned=False))
    assert verdict is not None
    assert verdict.what.startswith("the model does no better than guessing")


def test_fine_tuning_gets_other_advice_and_no_claim_about_its_loss() -> None:
    lineage = {**LINEAGE, "config": {"teacher": {}, "data": {"lake": "my.lake", "batch_size": 64}}}
    assert judge_run(lineage, FLAT) is None
    verdict = judge_run(lineage, FLAT, retrieval=retrieval(200, learned=False))
    assert verdict is not None
    assert "lakeclip inspect my.lake" in verdict.advice


def test_zero_shot_counts_like_retrieval() -> None:
    counts = np.full((4, 4), 10)
    result = ZeroShotResult(tuple("abcd"), counts, 0.25, 1.0, TemplateSet("t", "", ("{}",)))
    verdict = judge_run(LINEAGE, FALLING, zeroshot=[ZeroShotTestResult("My test", result)])
    assert verdict is not None
    assert "My test: zero-shot top-1 is 25.0%, 1.0× chance (25.0%)" in verdict.what


def test_the_sigmoid_and_smoothed_labels_have_no_known_loss_of_guessing() -> None:
    for loss in ({"objective": "sigmoid"}, {"objective": "softmax", "label_smoothing": 0.1}):
        lineage = {**LINEAGE, "config": {**LINEAGE["config"], "loss": loss}}
        assert judge_run(lineage, FLAT) is None
