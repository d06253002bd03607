"""The softmax objective: its definition and its gradients, however it is cut into tiles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lakeclip.losses import contrastive_loss, tiles
from tests.unit.losses.dense import dense_softmax, keys, pairs

CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def value_and_gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def leaves(batch: int, embed: int = 5, *, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(tensor.requires_grad_() for tensor in pairs(batch, embed, seed=seed))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_equals_the_papers_figure(batch: int) -> None:
    torch.testing.assert_close(contrastive_loss(*pairs(batch)), dense_softmax(*pairs(batch)), **CLOSE)


@given(
    batch=st.integers(1, 9),
    side=st.integers(1, 10),
    is_kept=st.booleans(),
    with_keys=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
)
def test_however_it_is_cut_it_equals_its_definition(
    batch: int, side: int, is_kept: bool, with_keys: bool, smoothing: float, seed: int
) -> None:
    """Value and all gradients, with tiles that do not divide the batch."""
    inputs, same = leaves(batch, seed=seed), keys(batch, seed=seed) if with_keys else None
    expected = value_and_gradients(dense_softmax(*inputs, same, smoothing), inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_SIDE", side)
        patch.setattr(tiles, "_KEPT", 2**24 if is_kept else 0)
        found = value_and_gradients(contrastive_loss(*inputs, same=same, label_smoothing=smoothing), inputs)
        with torch.no_grad():
            alone = contrastive_loss(*inputs, same=same, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(alone, expected[0], **CLOSE)


@pytest.mark.parametrize("side", [2, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("with_keys", [False, True])
def test_gradients_in_float64(side: int, smoothing: float, with_keys: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_SIDE", side)
    same = keys(5) if with_keys else None

    def loss(*inputs: Tensor) -> Tensor:
        return contrastive_loss(*inputs, same=same, label_smoothing=smoothing)

    assert torch.autograd.gradcheck(loss, leaves(5, 4))


def test_a_temperature_at_its_cap_neither_overflows_nor_vanishes() -> None:
    """Columns whose similarities are all far below the largest of the tile."""
    images, texts, _ = (tensor.float() for tensor in pairs(6))
    texts[3] = -images.mean(dim=0) / images.mean(dim=0).norm()
    inputs = tuple(x.requires_grad_() for x in (images, texts, torch.tensor(math.log(100.0))))
    found = value_and_gradients(contrastive_loss(*inputs), inputs)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    expected = value_and_gradients(dense_softmax(*exact), exact)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-4)


def test_label_smoothing_is_that_of_torch() -> None:
    images, texts, scale = pairs(6)
    logits, own = scale.exp() * images @ texts.T, torch.arange(6)
    expected = sum(F.cross_entropy(side, own, label_smoothing=0.1) for side in (logits, logits.T)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, scale, label_smoothing=0.1), expected, **CLOSE)


def test_rows_that_share_an_id_do_not_repel_each_other() -> None:
    """Two copies of one pair: as wrong answers of each other they would cost log 2."""
    one, other = torch.eye(4, dtype=torch.float64)[:2]
    features = torch.stack([one, one, other])
    scale, ids = torch.tensor(math.log(100.0), dtype=torch.float64), torch.tensor([[5], [5], [6]])
    apart = contrastive_loss(features, features, scale)
    assert float(apart) == pytest.approx(2 / 3 * math.log(2))
    moving = features.clone().requires_grad_()
    contrastive_loss(moving, features, scale, same=ids).backward()
    assert moving.grad is not None
    assert float(moving.grad.abs().max()) < 1e-12


def test_a_missing_id_agrees_with_nothing() -> None:
    missing = torch.zeros(5, 3, dtype=torch.int64)
    torch.testing.assert_close(contrastive_loss(*pairs(5), same=missing), contrastive_loss(*pairs(5)), **CLOSE)


def test_random_features_lose_the_logarithm_of_the_batch() -> None:
    images, texts, _ = pairs(256, 512)
    loss = contrastive_loss(images, texts, torch.tensor(0.0, dtype=torch.float64))
    assert float(loss) == pytest.approx(math.log(256), rel=0.01)


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts, scale = pairs(8)
    exact = contrastive_loss(images.bfloat16().double(), texts.bfloat16().double(), scale)
    halves = (images.bfloat16().requires_grad_(), texts.bfloat16().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        half = contrastive_loss(*halves, scale.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-5)
    assert [gradient.dtype for gradient in torch.autograd.grad(half, halves)] == [torch.bfloat16] * 2
