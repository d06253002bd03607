"""AdamW in bfloat16: PyTorch's arithmetic, falling second moments, small weight updates, an exact resume."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lakeclip.training.optim import rounded_adamw
from lakeclip.training.optim.rounded_adamw import RoundedAdamW

PLAIN: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


@settings(max_examples=40)
@given(
    lr=st.floats(1e-6, 1e-1),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.9999),
    eps=st.floats(1e-12, 1e-2),
    decay=st.floats(0, 1),
)
def test_float64_equals_pytorchs_adamw(lr: float, beta1: float, beta2: float, eps: float, decay: float) -> None:
    flags: dict[str, Any] = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
    start = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    train(RoundedAdamW([ours], **flags), [ours], 5)
    train(torch.optim.AdamW([theirs], foreach=False, **flags), [theirs], 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_chunks_of_any_memory_layout_equal_pytorchs_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels-last weights, a shorter last chunk, and a gradient with a different memory layout."""
    monkeypatch.setitem(rounded_adamw._CHUNK_SIZE, "cpu", 7)
    start = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = nn.Parameter(start.clone(memory_format=torch.channels_last))
    theirs = nn.Parameter(start.clone())
    train(RoundedAdamW([ours], **PLAIN), [ours], 3)
    train(torch.optim.AdamW([theirs], foreach=False, **PLAIN), [theirs], 3)
    torch.testing.assert_close(ours.detach().contiguous(), theirs.detach(), rtol=1e-12, atol=1e-12)


def averages(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Tensor:
    value: Tensor = optimizer.state[parameter]["exp_avg_sq"].float().mean()
    return value


@pytest.mark.slow
def test_the_second_moment_falls_with_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rounding to nearest, at β2 = 0.999, a decrease of 0.1% per step would be lost every time."""

    def second_moment(state_dtype: torch.dtype) -> float:
        weight = nn.Parameter(torch.zeros(500))
        optimizer = RoundedAdamW([weight], **{**PLAIN, "betas": (0.9, 0.999)}, state_dtype=state_dtype)
        generator = torch.Generator().manual_seed(0)
        for scale in (1.0, 0.1):
            for _ in range(1500):
                weight.grad = torch.randn(500, generator=generator) * scale
                optimizer.step()
        return float(averages(optimizer, weight))

    exact, ours = second_moment(torch.float32), second_moment(torch.bfloat16)
    assert ours == pytest.approx(exact, rel=0.01)
    monkeypatch.setattr(rounded_adamw, "stochastic_round_", lambda values, bits: values)
    assert second_moment(torch.bfloat16) > 3 * exact


def test_a_small_learning_rate_moves_weights_unlike_with_rounding_to_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of 3e-4 from 1 towards 0, where the spacing of bfloat16 is 4e-3."""

    def after(dtype: torch.dtype) -> float:
        weight = nn.Parameter(torch.ones(1000, dtype=dtype))
        optimizer = RoundedAdamW([weight], **{**PLAIN, "lr": 3e-4, "weight_decay": 0.0})
        for _ in range(400):
            optimizer.zero_grad()
            weight.float().square().sum().backward()
            optimizer.step()
        return float(weight.detach().float().square().mean())

    exact, ours = after(torch.float32), after(torch.bfloat16)
    assert exact == pytest.approx(0.78, abs=0.01)
    assert ours == pytest.approx(exact, rel=0.01)
    monkeypatch.setattr(rounded_adamw, "stochastic_round_", lambda values, bits: values)
    assert after(torch.bfloat16) == 1.0, "stalled"


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("states", [torch.bfloat16, None])
def test_resume_is_exact(weights: torch.dtype, states: torch.dtype | None) -> None:
    """Via a file, with weights_only; includes float32 averages of bfloat16 weights, which PyTorch would convert."""
    start = torch.randn(700, generator=torch.Generator().manual_seed(1)).to(weights)
    whole, cut = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = RoundedAdamW([whole], **PLAIN, state_dtype=states, seed=5)
    train(one, [whole], 3)
    train(one, [whole], 3, seed=1)
    first = RoundedAdamW([cut], **PLAIN, state_dtype=states, seed=5)
    train(first, [cut], 3)
    file = io.BytesIO()
    torch.save(copy.deepcopy(first.state_dict()), file)
    file.seek(0)
    second = RoundedAdamW([cut], **PLAIN, state_dtype=states, seed=99)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(second, [cut], 3, seed=1)
    assert torch.equal(cut, whole)
    for name in ("exp_avg", "exp_avg_sq"):
        assert second.state[cut][name].dtype == (states or torch.float32)
        assert torch.equal(second.state[cut][name], one.state[whole][name])


def test_a_parameter_without_a_gradient_is_unchanged_and_has_no_state() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = RoundedAdamW([used, unused], **PLAIN, state_dtype=torch.bfloat16)
    train(optimizer, [used], 2)
    assert torch.equal(unused, torch.ones(3))
    assert set(optimizer.state) == {used}


def test_a_nan_gradient_gives_a_nan_weight() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    weight.grad = torch.tensor([0x7FFF, 0x3F80, 0x3F80, 0x3F80], dtype=torch.int16).view(torch.bfloat16)
    RoundedAdamW([weight], **PLAIN, state_dtype=torch.bfloat16).step()
    assert weight.isnan().tolist() == [True, False, False, False]
