"""Tests of the sigmoid loss against its definition, for any tile size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lakeclip.losses import sigmoid_loss, tiles
from tests.unit.losses.dense import dense_sigmoid, random_ids, random_pairs

CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def leaves(batch: int, embed: int = 5, *, seed: int = 0, bias: float = -3.0) -> tuple[Tensor, ...]:
    logit_bias = torch.tensor(bias, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (*random_pairs(batch, embed, seed=seed), logit_bias))


@given(batch=st.integers(1, 9), side=st.integers(1, 10), with_ids=st.booleans(), seed=st.integers(0, 99))
def test_value_and_gradients_equal_the_definition_for_any_tile_size(
    batch: int, side: int, with_ids: bool, seed: int
) -> None:
    """Compare value and gradients, also for tiles that do not divide the batch."""
    inputs, positive_ids = leaves(batch, seed=seed), random_ids(batch, seed=seed) if with_ids else None
    expected = dense_sigmoid(*inputs, positive_ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_TILE_SIZE", side)
        found = sigmoid_loss(*inputs, positive_ids=positive_ids)
        with torch.no_grad():
            torch.testing.assert_close(sigmoid_loss(*inputs, positive_ids=positive_ids), found.detach(), **CLOSE)
    torch.testing.assert_close(found, expected, **CLOSE)
    gradients, expected_gradients = (torch.autograd.grad(loss, inputs) for loss in (found, expected))
    torch.testing.assert_close(gradients, expected_gradients, **CLOSE)


@pytest.mark.parametrize("with_ids", [False, True])
def test_gradcheck_in_float64(with_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_TILE_SIZE", 2)
    positive_ids = random_ids(5) if with_ids else None
    assert torch.autograd.gradcheck(lambda *inputs: sigmoid_loss(*inputs, positive_ids=positive_ids), leaves(5, 4))


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts, scale, bias = (tensor.detach() for tensor in leaves(8))
    exact = sigmoid_loss(images.bfloat16().double(), texts.bfloat16().double(), scale, bias)
    with torch.autocast("cpu", torch.bfloat16):
        half = sigmoid_loss(images.bfloat16(), texts.bfloat16(), scale.float(), bias.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-5)
