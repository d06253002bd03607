"""The sigmoid objective: its definition and its gradients, however it is cut into tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lakeclip.losses import sigmoid_loss, tiles
from tests.unit.losses.dense import dense_sigmoid, keys, pairs

CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def leaves(batch: int, embed: int = 5, *, seed: int = 0, bias: float = -3.0) -> tuple[Tensor, ...]:
    given_bias = torch.tensor(bias, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (*pairs(batch, embed, seed=seed), given_bias))


@given(batch=st.integers(1, 9), side=st.integers(1, 10), with_keys=st.booleans(), seed=st.integers(0, 99))
def test_however_it_is_cut_it_equals_its_definition(batch: int, side: int, with_keys: bool, seed: int) -> None:
    """Value and all gradients, with tiles that do not divide the batch."""
    inputs, same = leaves(batch, seed=seed), keys(batch, seed=seed) if with_keys else None
    expected = dense_sigmoid(*inputs, same)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_SIDE", side)
        found = sigmoid_loss(*inputs, same=same)
        with torch.no_grad():
            torch.testing.assert_close(sigmoid_loss(*inputs, same=same), found.detach(), **CLOSE)
    torch.testing.assert_close(found, expected, **CLOSE)
    found_gradients, wanted = (torch.autograd.grad(loss, inputs) for loss in (found, expected))
    torch.testing.assert_close(found_gradients, wanted, **CLOSE)


@pytest.mark.parametrize("with_keys", [False, True])
def test_gradients_in_float64(with_keys: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_SIDE", 2)
    same = keys(5) if with_keys else None
    assert torch.autograd.gradcheck(lambda *inputs: sigmoid_loss(*inputs, same=same), leaves(5, 4))


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts, scale, bias = (tensor.detach() for tensor in leaves(8))
    exact = sigmoid_loss(images.bfloat16().double(), texts.bfloat16().double(), scale, bias)
    with torch.autocast("cpu", torch.bfloat16):
        half = sigmoid_loss(images.bfloat16(), texts.bfloat16(), scale.float(), bias.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-5)
