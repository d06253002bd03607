"""Retrieval metrics: by hand, against the definition over all orders of ties, and against plain sorting."""

from __future__ import annotations

import itertools
import statistics
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lakeclip.evaluation.retrieval import CUTOFFS, Ranking, RetrievalResult, retrieval_metrics


def reference_ranking(similarity: list[list[float]], positives: list[set[int]]) -> Ranking:
    """Compute the metrics by definition: average over all orders of the candidates that sort them by similarity."""
    hits: dict[int, list[float]] = {k: [] for k in CUTOFFS}
    ranks, precisions = [], []
    for row, positive in zip(similarity, positives, strict=True):
        if not positive:
            continue
        first_ranks, precision = [], []
        for order in itertools.permutations(range(len(row))):
            if all(row[a] >= row[b] for a, b in itertools.pairwise(order)):
                ranked = [rank for rank, candidate in enumerate(order, start=1) if candidate in positive]
                first_ranks.append(ranked[0])
                precision.append(statistics.mean(number / rank for number, rank in enumerate(ranked, start=1)))
        ranks.append(statistics.mean(first_ranks))
        precisions.append(statistics.mean(precision))
        for k in CUTOFFS:
            hits[k].append(statistics.mean(rank <= k for rank in first_ranks))
    recall = {k: statistics.mean(values) for k, values in hits.items()}
    return Ranking(recall, statistics.median(ranks), statistics.mean(precisions))


def assert_close(actual: Ranking, expected: Ranking) -> None:
    assert actual.recall == pytest.approx(expected.recall)
    assert actual.median_rank == pytest.approx(expected.median_rank)
    assert actual.mean_average_precision == pytest.approx(expected.mean_average_precision)


#: Ranking with 40 tied candidates, one of them positive: the average precision is the mean of 1/1 … 1/40.
CHANCE_OF_40 = Ranking({1: 1 / 40, 5: 5 / 40, 10: 10 / 40}, 20.5, sum(1 / k for k in range(1, 41)) / 40)


def one_hot(*classes: int) -> Tensor:
    return F.one_hot(torch.tensor(classes), 8).float()


def test_three_images_by_hand() -> None:
    # similarities, images down and texts across:   t0 .9  t1 .5  t2 .1
    images = torch.eye(3)
    texts = torch.tensor([[0.9, 0.8, 0.0], [0.5, 0.6, 0.0], [0.1, 0.7, 0.3]])
    result = retrieval_metrics(images, texts, torch.tensor([0, 1, 2]))
    # image 0: t0 first. image 1: t0 .8 and t2 .7 are before t1. image 2: t2 first.
    by_hand = {"R@1": 2 / 3, "R@5": 1, "R@10": 1, "median_rank": 1}
    assert result.image_to_text.to_json() == pytest.approx({**by_hand, "mAP": (1 + 1 / 3 + 1) / 3})
    # t0: first. t1: first. t2: image 1 (.7) before image 2 (.3).
    assert result.text_to_image.to_json() == pytest.approx({**by_hand, "mAP": (1 + 1 + 1 / 2) / 3})
    assert (result.num_images, result.num_texts) == (3, 3)


def test_several_captions_per_image_by_hand() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[0.2, 0.9], [0.8, 0.1], [0.7, 0.3], [0.6, 0.5]])
    result = retrieval_metrics(images, texts, torch.tensor([0, 0, 1, 1]))
    # image 0 sorts t1 t2 t3 t0: its t1 leads, t0 is last. image 1 sorts t0 t3 t2 t1: its t3 is second, t2 third.
    assert_close(
        result.image_to_text, Ranking({1: 0.5, 5: 1.0, 10: 1.0}, 1.5, ((1 + 2 / 4) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    )
    # t0 goes to image 1, wrong; t1 to 0, right; t2 and t3 to 0, wrong.
    assert_close(result.text_to_image, Ranking({1: 0.25, 5: 1.0, 10: 1.0}, 2.0, (1 / 2 + 1 + 1 / 2 + 1 / 2) / 4))


def test_perfect_model_and_its_opposite() -> None:
    features = torch.eye(12)
    perfect = retrieval_metrics(features, features, torch.arange(12))
    assert perfect.image_to_text == perfect.text_to_image == Ranking({1: 1.0, 5: 1.0, 10: 1.0}, 1.0, 1.0)
    worst = retrieval_metrics(-features, features, torch.arange(12))
    assert worst.image_to_text == worst.text_to_image == Ranking({1: 0.0, 5: 0.0, 10: 0.0}, 12.0, 1 / 12)


def test_constant_features_score_chance() -> None:
    features = F.normalize(torch.ones(40, 7), dim=1)
    result = retrieval_metrics(features, features, torch.arange(40))
    for ranking in (result.image_to_text, result.text_to_image):
        assert_close(ranking, CHANCE_OF_40)


def test_non_finite_features_score_chance() -> None:
    broken = torch.full((40, 7), torch.nan)
    result = retrieval_metrics(broken, broken, torch.arange(40))
    assert_close(result.text_to_image, CHANCE_OF_40)


def test_equal_images_tie() -> None:
    result = retrieval_metrics(one_hot(0, 0, 1), one_hot(0, 0, 1), torch.tensor([0, 1, 2]))
    assert_close(result.text_to_image, Ranking({1: 2 / 3, 5: 1.0, 10: 1.0}, 1.5, (3 / 4 + 3 / 4 + 1) / 3))


def test_images_equal_up_to_rounding_tie() -> None:
    torch.manual_seed(0)
    features = F.normalize(torch.randn(6, 64), dim=1)
    noisy = F.normalize(features + 1e-8 * torch.randn(6, 64), dim=1)
    result = retrieval_metrics(torch.cat([features, noisy]), features, torch.arange(6))
    assert result.text_to_image.recall[1] == pytest.approx(0.5)


def test_image_without_captions_is_a_candidate_but_not_a_query() -> None:
    result = retrieval_metrics(one_hot(0, 1, 2), one_hot(2, 1), torch.tensor([0, 1]))
    # Image 1 retrieves its caption; for image 0 both captions tie. Caption 0 retrieves image 2, caption 1 its own.
    assert result.image_to_text.recall[1] == 0.75
    assert result.text_to_image.recall[1] == 0.5
    assert result.num_images == 3


@given(st.data())
@settings(max_examples=60)
def test_equals_the_definition(data: st.DataObject) -> None:
    num_images = data.draw(st.integers(1, 5))
    num_texts = data.draw(st.integers(1, 5))
    image_of_text = data.draw(st.lists(st.integers(0, num_images - 1), min_size=num_texts, max_size=num_texts))
    # Few distinct values, so that ties are common. With unit vectors as texts, the image features are the matrix.
    rows = st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5]), min_size=num_texts, max_size=num_texts)
    matrix = data.draw(st.lists(rows, min_size=num_images, max_size=num_images))
    tile = data.draw(st.integers(1, 30))
    result = retrieval_metrics(torch.tensor(matrix), torch.eye(num_texts), torch.tensor(image_of_text), tile=tile)
    texts_of = [
        {text for text, image_index in enumerate(image_of_text) if image_index == image} for image in range(num_images)
    ]
    columns = [list(column) for column in zip(*matrix, strict=True)]
    assert_close(result.image_to_text, reference_ranking(matrix, texts_of))
    assert_close(result.text_to_image, reference_ranking(columns, [{image_index} for image_index in image_of_text]))


@given(st.integers(1, 2000))
@settings(max_examples=20)
def test_tile_size_and_caption_order_do_not_matter(tile: int) -> None:
    generator = torch.Generator().manual_seed(tile)
    images = F.normalize(torch.randn(23, 16, generator=generator), dim=1)
    image_of_text = torch.randint(0, 23, (61,), generator=generator)
    texts = F.normalize(images[image_of_text] + 0.3 * torch.randn(61, 16, generator=generator), dim=1)
    expected = retrieval_metrics(images, texts, image_of_text)
    order = torch.randperm(61, generator=generator)
    tiled = retrieval_metrics(images, texts[order], image_of_text[order], tile=tile)
    assert_close(tiled.image_to_text, expected.image_to_text)
    assert_close(tiled.text_to_image, expected.text_to_image)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=400), st.integers(1, 5000), st.integers(0, 2**20))
@settings(max_examples=40)
def test_untied_ranks_are_those_of_sorting(counts: list[int], tile: int, seed: int) -> None:
    """Compare with a plain sort of the full matrix; images have any number of captions, including none."""
    if not sum(counts):
        counts = [*counts, 1]
    generator = torch.Generator().manual_seed(seed)
    image_of_text = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = F.normalize(torch.randn(len(counts), 8, generator=generator, dtype=torch.float64), dim=1)
    texts = F.normalize(
        images[image_of_text] + torch.randn(len(image_of_text), 8, generator=generator, dtype=torch.float64), dim=1
    )
    similarity = images @ texts.T
    is_positive = image_of_text[None, :] == torch.arange(len(counts))[:, None]
    result = retrieval_metrics(
        images.float(), texts.float(), image_of_text, tile=max(tile, len(image_of_text) * len(counts) // 500)
    )
    for ranking, scores, positive in (
        (result.image_to_text, similarity, is_positive),
        (result.text_to_image, similarity.T, is_positive.T),
    ):
        has_positive = positive.any(dim=1)
        # Some random similarities are closer than float32 resolves; the ranks of such queries may differ.
        tolerance = (scores[has_positive].sort(dim=1).values.diff(dim=1) < 5e-6).any(
            dim=1
        ).double().mean().item() + 1e-6
        positive = positive.gather(1, scores.argsort(dim=1, descending=True))[has_positive]
        ranks = torch.arange(1, positive.shape[1] + 1)
        precision = ((positive.cumsum(dim=1) / ranks) * positive).sum(dim=1) / positive.sum(dim=1)
        first = positive.int().argmax(dim=1) + 1
        assert ranking.mean_average_precision == pytest.approx(precision.mean().item(), abs=tolerance)
        assert ranking.recall[5] == pytest.approx((first <= 5).double().mean().item(), abs=tolerance)
        assert ranking.curve[99] == pytest.approx((first <= 100).double().mean().item(), abs=tolerance)
        assert ranking.curve == tuple(sorted(ranking.curve))


def test_reduced_precision_of_training_does_not_change_the_ranks() -> None:
    torch.manual_seed(0)
    images = F.normalize(torch.randn(64, 512), dim=1)
    texts = F.normalize(images + 0.5 * torch.randn(64, 512), dim=1)
    exact = retrieval_metrics(images, texts, torch.arange(64))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert retrieval_metrics(images, texts, torch.arange(64)) == exact
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_json_has_the_documented_keys() -> None:
    ranking = Ranking({1: 0.5, 5: 0.75, 10: 1.0}, 2.0, 0.625, chance={1: 0.125, 5: 0.625, 10: 1.0}, num_queries=8)
    assert RetrievalResult(ranking, ranking, 4, 8).to_json() == {
        "image_to_text": {"R@1": 0.5, "R@5": 0.75, "R@10": 1.0, "median_rank": 2.0, "mAP": 0.625},
        "text_to_image": {"R@1": 0.5, "R@5": 0.75, "R@10": 1.0, "median_rank": 2.0, "mAP": 0.625},
        "num_images": 4,
        "num_texts": 8,
        "chance": {
            "image_to_text": {"R@1": 0.125, "R@5": 0.625, "R@10": 1.0},
            "text_to_image": {"R@1": 0.125, "R@5": 0.625, "R@10": 1.0},
        },
        "verdict": {"image_to_text_R@1": "learning", "text_to_image_R@1": "learning"},
    }


@pytest.mark.parametrize("image_of_text", [[0, 1, 3], [0, 1, -1]])
def test_invalid_indices_are_rejected(image_of_text: list[int]) -> None:
    with pytest.raises(ValueError, match="image_index_of_text"):
        retrieval_metrics(torch.eye(3), torch.eye(3), torch.tensor(image_of_text))


def test_no_captions_are_rejected() -> None:
    with pytest.raises(ValueError, match="0 texts"):
        retrieval_metrics(torch.eye(3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_a_thousand_images_with_five_captions_each_are_fast() -> None:
    torch.manual_seed(0)
    images = F.normalize(torch.randn(1000, 64), dim=1)
    image_of_text = torch.arange(1000).repeat_interleave(5)
    start = time.process_time()
    retrieval_metrics(images, images[image_of_text], image_of_text)
    assert time.process_time() - start < 5
