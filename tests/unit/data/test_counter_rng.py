"""Test the stateless random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.data.counter_rng import keys, uniforms


@given(st.integers(-(2**70), 2**70), st.lists(st.integers(0, 2**63 - 1), unique=True, min_size=2))
def test_keys_of_different_positions_differ(seed, positions):
    computed = keys(seed, 3, np.array(positions))
    assert len(np.unique(computed)) == len(positions)


def test_arrays_and_numbers_agree():
    assert keys(1, 2, np.arange(5))[3] == keys(1, 2, 3)[0]
    assert keys(1, np.arange(5))[:, None].shape == (5, 1)


def test_uniforms_are_uniform_and_independent():
    drawn = uniforms(keys(0, np.arange(100_000)), 3)
    assert drawn.shape == (100_000, 3)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean(axis=0) == pytest.approx(0.5, abs=0.005)
    assert drawn.var(axis=0) == pytest.approx(1 / 12, abs=0.002)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.02


def test_the_numbers_are_the_same_in_every_version():
    """Pin the numbers: batches can be rebuilt only if they never change."""
    assert keys(0, 1, 2).tolist() == [6768782832058643234]
