"""Stochastic rounding: unbiased, exact for bfloat16 values, and determined by the seed."""

from __future__ import annotations

import pytest
import torch

from lakeclip.training.optim.stochastic_rounding import RoundingBits, stochastic_round_

CPU = torch.device("cpu")


def rounded(values: torch.Tensor, seed: int = 0, step: int = 0) -> torch.Tensor:
    bits = RoundingBits(seed, step, 1, values.numel(), CPU)
    return stochastic_round_(values.clone()[None], bits.next_bits(slice(0, 1), values.numel()))[0]


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159, 1e-30, -2.7e20, 1e-40, -3e-39])
def test_the_mean_is_the_number_before_rounding(value: float) -> None:
    """Normal and denormal, positive and negative numbers; within four standard errors."""
    count = 200_000
    results = rounded(torch.full((count,), value)).double()
    exact = torch.tensor(value).double()
    both = results.unique()
    assert len(both) == 2
    assert both[0] < exact < both[1]
    error = results.std() / count**0.5
    assert abs(results.mean() - exact) < 4 * error
    nearest = exact.float().bfloat16().double()
    assert abs(nearest - exact) > 4 * error, "rounding to nearest would fail this test"


def test_each_element_is_unbiased_over_many_steps() -> None:
    """The chunks of a step share random numbers: the bits of two elements must still be independent."""
    value, samples = 1.001, []
    for step in range(3000):
        bits = RoundingBits(7, step, 1, 8, CPU)
        chunks = [bits.next_bits(slice(0, 1), 8).clone() for _ in range(3)]
        samples.append(stochastic_round_(torch.full((1, 24), value), torch.cat(chunks, dim=1))[0].double())
    results = torch.stack(samples)
    error = results.std() / 3000**0.5
    assert (results.mean(dim=0) - torch.tensor(value).double()).abs().max() < 4.5 * error
    correlation = torch.corrcoef(results.T) - torch.eye(24)
    assert correlation.abs().max() < 5 / 3000**0.5, "two elements are correlated"


def test_bfloat16_values_are_unchanged() -> None:
    """All bfloat16 values, including infinities, every NaN, zeros and denormals."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    results = rounded(every.float(), seed=3)
    torch.testing.assert_close(results.bfloat16(), every, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000])
def test_nan_stays_nan_whatever_its_bits(bits: int) -> None:
    """A GPU's NaN has all bits set, so that the carry would make it minus zero."""
    values = torch.full((1000,), bits, dtype=torch.int32).view(torch.float32)
    assert rounded(values).bfloat16().isnan().all()


def test_bits_depend_on_seed_and_step_and_not_on_the_global_random_state() -> None:
    values = torch.rand(1000)
    before = torch.get_rng_state()
    first = rounded(values, seed=1, step=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(rounded(values, seed=1, step=2), first)
    assert not torch.equal(rounded(values, seed=1, step=3), first)
    assert not torch.equal(rounded(values, seed=2, step=2), first)
