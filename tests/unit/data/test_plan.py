"""Test the rows at each position for weighted rows and mixtures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.data.order import Order, hold_out
from lakeclip.data.plan import ConcatSubset, MixturePlan, SourcePlan, WeightedRows
from lakeclip.errors import ConfigError


def plan_of(num_rows: int, seed: int = 0, offset: int = 0, weights: np.ndarray | None = None) -> SourcePlan:
    rows, _ = hold_out(num_rows, 0)
    weighted = None if weights is None else WeightedRows(weights.astype(np.float32))
    return SourcePlan(rows, Order(num_rows, seed), weighted, offset)


def epoch_rows(plan: SourcePlan | MixturePlan, epoch: int = 0) -> np.ndarray:
    return plan.rows(epoch, np.arange(plan.num_rows))


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=300).filter(any),
    st.integers(0, 2**32),
    st.integers(0, 5),
)
def test_a_row_occurs_in_proportion_to_its_weight(weights: list[int], seed: int, epoch: int) -> None:
    share = np.array(weights) / sum(weights) * len(weights)
    counts = np.bincount(
        epoch_rows(plan_of(len(weights), seed, weights=np.array(weights)), epoch), minlength=len(weights)
    )
    assert counts.sum() == len(weights)
    assert (counts >= np.floor(share - 1e-6)).all()
    assert (counts <= np.ceil(share + 1e-6)).all()


def test_epochs_round_differently_so_that_small_weights_occur() -> None:
    weights = np.array([50.0] + [0.5] * 100)
    counts = sum(np.bincount(epoch_rows(plan_of(101, weights=weights), epoch), minlength=101) for epoch in range(200))
    assert counts[0] / 200 == pytest.approx(50.5, rel=0.01)
    assert (counts[1:] > 50).all()
    assert (counts[1:] < 150).all()


def test_equal_weights_visit_every_row_once() -> None:
    plain, weighted = plan_of(5000, 3), plan_of(5000, 3, weights=np.full(5000, 7.0))
    assert (np.sort(epoch_rows(weighted)) == np.arange(5000)).all()
    assert plain.fingerprint != weighted.fingerprint


def test_weights_of_a_million_rows_take_little_memory() -> None:
    import pickle

    assert len(pickle.dumps(WeightedRows(np.ones(1_000_000, np.float32)))) < 4.5e6


SOURCES = st.lists(st.tuples(st.integers(1, 3000), st.floats(0.01, 1)), min_size=1, max_size=4)


@settings(max_examples=40)
@given(SOURCES, st.integers(0, 2**32), st.integers(0, 3), st.data())
def test_a_mixture_is_a_function_of_the_position(
    sources: list[tuple[int, float]], seed: int, epoch: int, data: st.DataObject
) -> None:
    starts = np.cumsum([0, *(size for size, _ in sources)])
    plans = [plan_of(size, seed + i, int(starts[i])) for i, (size, _) in enumerate(sources)]
    plan = MixturePlan(plans, [share for _, share in sources])
    rows = epoch_rows(plan, epoch)
    assert rows.min() >= 0
    assert rows.max() < plan.num_rows == starts[-1]
    positions = np.array(data.draw(st.lists(st.integers(0, plan.num_rows - 1), max_size=20)), np.int64)
    assert (plan.rows(epoch, positions) == rows[positions]).all()


def test_shares_are_exact_per_thousand_and_rows_repeat_evenly() -> None:
    plan = MixturePlan([plan_of(20_000), plan_of(3_000, 1, 20_000)], [0.7, 0.3])
    assert plan.epochs_per_epoch == pytest.approx([0.7 * 23 / 20, 0.3 * 23 / 3])
    stream = np.concatenate([epoch_rows(plan, epoch) for epoch in range(4)])
    small = stream >= 20_000
    for start in range(0, 91_000, 1_000):
        assert small[start : start + 1_000].sum() == 300
    # They also hold approximately within a batch.
    per_batch = small[:92_000].reshape(-1, 250).sum(axis=1)
    assert 45 < per_batch.min() < 75 < per_batch.max() < 105
    # Each lake goes through all of its rows before any is repeated.
    for rows, size in ((stream[small] - 20_000, 3_000), (stream[~small], 20_000)):
        assert len(rows) // size >= 2
        # Positions are permuted within a round of 1,000, so consecutive epochs overlap only near their boundary.
        inside = rows[700 : size - 700]
        assert len(np.unique(inside)) == len(inside)
        assert np.ptp(np.bincount(rows, minlength=size)) <= 2


def test_shares_are_relative_and_tiny_ones_raise() -> None:
    plans = [plan_of(100), plan_of(100, 1, 100)]
    assert (epoch_rows(MixturePlan(plans, [7, 3])) == epoch_rows(MixturePlan(plans, [0.7, 0.3]))).all()
    with pytest.raises(ConfigError, match="too small"):
        MixturePlan(plans, [1, 1e-7])


def test_a_concatenation_of_subsets() -> None:
    subsets = [hold_out(100, 0.1)[1], hold_out(50, 0.2)[1]]
    concatenated = ConcatSubset(subsets, [0, 100])
    rows = concatenated[np.arange(len(concatenated))]
    assert len(concatenated) == len(subsets[0]) + len(subsets[1])
    assert (rows[: len(subsets[0])] < 100).all()
    assert (rows[len(subsets[0]) :] >= 100).all()
    assert (rows[len(subsets[0]) :] - 100 == subsets[1][np.arange(len(subsets[1]))]).all()
