"""Tests of the contrastive loss against its definition, for any tile size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lakeclip.losses import contrastive_loss, tiles
from tests.unit.losses.dense import dense_softmax, random_ids, random_pairs

CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def value_and_gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def leaves(batch: int, embed: int = 5, *, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(tensor.requires_grad_() for tensor in random_pairs(batch, embed, seed=seed))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_equals_figure_3_of_the_paper(batch: int) -> None:
    torch.testing.assert_close(contrastive_loss(*random_pairs(batch)), dense_softmax(*random_pairs(batch)), **CLOSE)


@given(
    batch=st.integers(1, 9),
    side=st.integers(1, 10),
    is_cached=st.booleans(),
    with_ids=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_equal_the_definition_for_any_tile_size(
    batch: int, side: int, is_cached: bool, with_ids: bool, smoothing: float, seed: int
) -> None:
    """Compare value and gradients, also for tiles that do not divide the batch."""
    inputs, positive_ids = leaves(batch, seed=seed), random_ids(batch, seed=seed) if with_ids else None
    expected = value_and_gradients(dense_softmax(*inputs, positive_ids, smoothing), inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_TILE_SIZE", side)
        patch.setattr(tiles, "_MAX_CACHED_ENTRIES", 2**24 if is_cached else 0)
        found = value_and_gradients(
            contrastive_loss(*inputs, positive_ids=positive_ids, label_smoothing=smoothing), inputs
        )
        with torch.no_grad():
            value = contrastive_loss(*inputs, positive_ids=positive_ids, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(value, expected[0], **CLOSE)


@pytest.mark.parametrize("side", [2, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("with_ids", [False, True])
def test_gradcheck_in_float64(side: int, smoothing: float, with_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_TILE_SIZE", side)
    positive_ids = random_ids(5) if with_ids else None

    def loss(*inputs: Tensor) -> Tensor:
        return contrastive_loss(*inputs, positive_ids=positive_ids, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, leaves(5, 4))


def test_the_largest_logit_scale_neither_overflows_nor_underflows() -> None:
    """Include a column whose similarities are all far below the largest of the tile."""
    images, texts, _ = (tensor.float() for tensor in random_pairs(6))
    texts[3] = -images.mean(dim=0) / images.mean(dim=0).norm()
    inputs = tuple(x.requires_grad_() for x in (images, texts, torch.tensor(math.log(100.0))))
    found = value_and_gradients(contrastive_loss(*inputs), inputs)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    expected = value_and_gradients(dense_softmax(*exact), exact)
    for value, expected_value in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), expected_value, rtol=1e-4, atol=1e-4)


def test_label_smoothing_equals_torch() -> None:
    images, texts, scale = random_pairs(6)
    logits, own = scale.exp() * images @ texts.T, torch.arange(6)
    expected = sum(F.cross_entropy(side, own, label_smoothing=0.1) for side in (logits, logits.T)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, scale, label_smoothing=0.1), expected, **CLOSE)


def test_rows_that_share_an_id_do_not_repel_each_other() -> None:
    """Use two copies of one pair; as negatives of each other they would cost log 2."""
    first, second = torch.eye(4, dtype=torch.float64)[:2]
    features = torch.stack([first, first, second])
    scale, ids = torch.tensor(math.log(100.0), dtype=torch.float64), torch.tensor([[5], [5], [6]])
    without_ids = contrastive_loss(features, features, scale)
    assert float(without_ids) == pytest.approx(2 / 3 * math.log(2))
    leaf = features.clone().requires_grad_()
    contrastive_loss(leaf, features, scale, positive_ids=ids).backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().max()) < 1e-12


def test_missing_ids_make_no_positives() -> None:
    missing = torch.zeros(5, 3, dtype=torch.int64)
    torch.testing.assert_close(
        contrastive_loss(*random_pairs(5), positive_ids=missing), contrastive_loss(*random_pairs(5)), **CLOSE
    )


def test_random_features_have_a_loss_of_log_batch_size() -> None:
    images, texts, _ = random_pairs(256, 512)
    loss = contrastive_loss(images, texts, torch.tensor(0.0, dtype=torch.float64))
    assert float(loss) == pytest.approx(math.log(256), rel=0.01)


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts, scale = random_pairs(8)
    exact = contrastive_loss(images.bfloat16().double(), texts.bfloat16().double(), scale)
    halves = (images.bfloat16().requires_grad_(), texts.bfloat16().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        half = contrastive_loss(*halves, scale.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-5)
    assert [gradient.dtype for gradient in torch.autograd.grad(half, halves)] == [torch.bfloat16] * 2
