"""Weights and mixtures: which row stands at each position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.data.order import Order, hold_out
from lakeclip.data.plan import Chain, Mixture, Pass, Weights
from lakeclip.errors import ConfigError


def every_row(num_rows: int, seed: int = 0, offset: int = 0, weights: np.ndarray | None = None) -> Pass:
    rows, _ = hold_out(num_rows, 0)
    own = None if weights is None else Weights(weights.astype(np.float32))
    return Pass(rows, Order(num_rows, seed), own, offset)


def epoch_of(plan: Pass | Mixture, epoch: int = 0) -> np.ndarray:
    return plan.rows(epoch, np.arange(plan.num_rows))


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=300).filter(any),
    st.integers(0, 2**32),
    st.integers(0, 5),
)
def test_a_row_stands_as_often_as_it_weighs(weights: list[int], seed: int, epoch: int) -> None:
    share = np.array(weights) / sum(weights) * len(weights)
    counts = np.bincount(
        epoch_of(every_row(len(weights), seed, weights=np.array(weights)), epoch), minlength=len(weights)
    )
    assert counts.sum() == len(weights)
    assert (counts >= np.floor(share - 1e-6)).all()
    assert (counts <= np.ceil(share + 1e-6)).all()


def test_epochs_round_anew_so_that_small_weights_have_their_turn() -> None:
    weights = np.array([50.0] + [0.5] * 100)
    counts = sum(np.bincount(epoch_of(every_row(101, weights=weights), epoch), minlength=101) for epoch in range(200))
    assert counts[0] / 200 == pytest.approx(50.5, rel=0.01)
    assert (counts[1:] > 50).all()
    assert (counts[1:] < 150).all()


def test_equal_weights_are_no_weights() -> None:
    plain, weighted = every_row(5000, 3), every_row(5000, 3, weights=np.full(5000, 7.0))
    assert (np.sort(epoch_of(weighted)) == np.arange(5000)).all()
    assert plain.fingerprint != weighted.fingerprint


def test_weights_of_a_million_rows_take_little_memory() -> None:
    import pickle

    assert len(pickle.dumps(Weights(np.ones(1_000_000, np.float32)))) < 4.5e6


SOURCES = st.lists(st.tuples(st.integers(1, 3000), st.floats(0.01, 1)), min_size=1, max_size=4)


@settings(max_examples=40)
@given(SOURCES, st.integers(0, 2**32), st.integers(0, 3), st.data())
def test_a_mixture_is_a_function_of_the_position(
    sources: list[tuple[int, float]], seed: int, epoch: int, data: st.DataObject
) -> None:
    starts = np.cumsum([0, *(size for size, _ in sources)])
    passes = [every_row(size, seed + i, int(starts[i])) for i, (size, _) in enumerate(sources)]
    plan = Mixture(passes, [share for _, share in sources])
    rows = epoch_of(plan, epoch)
    assert rows.min() >= 0
    assert rows.max() < plan.num_rows == starts[-1]
    some = np.array(data.draw(st.lists(st.integers(0, plan.num_rows - 1), max_size=20)), np.int64)
    assert (plan.rows(epoch, some) == rows[some]).all()


def test_shares_are_kept_in_every_ten_thousand_and_rows_take_turns() -> None:
    plan = Mixture([every_row(20_000), every_row(3_000, 1, 20_000)], [0.7, 0.3])
    assert plan.epochs_per_epoch == pytest.approx([0.7 * 23 / 20, 0.3 * 23 / 3])
    stream = np.concatenate([epoch_of(plan, epoch) for epoch in range(4)])
    small = stream >= 20_000
    for start in range(0, 91_000, 1_000):
        assert small[start : start + 1_000].sum() == 300
    # Within a batch too, nearly.
    per_batch = small[:92_000].reshape(-1, 250).sum(axis=1)
    assert 45 < per_batch.min() < 75 < per_batch.max() < 105
    # Each lake goes through all of its rows before any comes again.
    for own, size in ((stream[small] - 20_000, 3_000), (stream[~small], 20_000)):
        assert len(own) // size >= 2
        # Positions within a round are mixed, so turns meet at their seams and nowhere else.
        inside = own[700 : size - 700]
        assert len(np.unique(inside)) == len(inside)
        assert np.ptp(np.bincount(own, minlength=size)) <= 2


def test_shares_need_not_add_up_and_cannot_be_tiny() -> None:
    passes = [every_row(100), every_row(100, 1, 100)]
    assert (epoch_of(Mixture(passes, [7, 3])) == epoch_of(Mixture(passes, [0.7, 0.3]))).all()
    with pytest.raises(ConfigError, match="too small"):
        Mixture(passes, [1, 1e-7])


def test_a_chain_of_places() -> None:
    held = [hold_out(100, 0.1)[1], hold_out(50, 0.2)[1]]
    chain = Chain(held, [0, 100])
    rows = chain[np.arange(len(chain))]
    assert len(chain) == len(held[0]) + len(held[1])
    assert (rows[: len(held[0])] < 100).all()
    assert (rows[len(held[0]) :] >= 100).all()
    assert (rows[len(held[0]) :] - 100 == held[1][np.arange(len(held[1]))]).all()
