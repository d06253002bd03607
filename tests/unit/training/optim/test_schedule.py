"""Learning rate schedule over the number of steps of the run."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.training.optim.schedule import PAPER_WARMUP_STEPS, warmup_cosine, warmup_steps


@given(total=st.integers(2, 5000), warmup=st.integers(0, 100))
def test_rises_to_the_peak_and_falls_to_zero_within_the_run(total: int, warmup: int) -> None:
    """The schedule spans the run without restarts."""
    warmup = min(warmup, total - 1)
    factors = [warmup_cosine(step, warmup=warmup, total=total) for step in range(total + 1)]
    peak = max(0, warmup - 1)
    assert factors[peak] == pytest.approx(1.0)
    assert all(a <= b for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))
    assert factors[total] == pytest.approx(0.0)


def test_half_of_the_decay_is_half_of_the_peak() -> None:
    assert warmup_cosine(60, warmup=20, total=100) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("total", "requested", "expected"), [(10**6, None, PAPER_WARMUP_STEPS), (500, None, 50), (500, 7, 7)]
)
def test_warmup_fits_the_run(total: int, requested: int | None, expected: int) -> None:
    assert warmup_steps(total, requested) == expected
