"""Test the order of the rows and the hold-out split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.data.order import BLOCK_ROWS, WINDOW_BLOCKS, Order, hold_out
from lakeclip.errors import ConfigError

# Sizes around the edges of blocks and windows.
EDGES = [BLOCK_ROWS, 2 * BLOCK_ROWS, WINDOW_BLOCKS * BLOCK_ROWS, 2 * WINDOW_BLOCKS * BLOCK_ROWS]
SIZES = st.one_of(st.integers(1, 3000), st.sampled_from(EDGES).flatmap(lambda edge: st.integers(edge - 2, edge + 2)))


def full_order(num_rows: int, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return Order(num_rows, seed).rows(epoch, np.arange(num_rows))


@given(SIZES, st.integers(0, 2**63), st.integers(0, 1000))
def test_an_epoch_is_every_row_once(num_rows, seed, epoch):
    assert np.array_equal(np.sort(full_order(num_rows, seed=seed, epoch=epoch)), np.arange(num_rows))


@given(SIZES, st.data())
def test_any_positions_agree_with_the_full_order(num_rows, data):
    positions = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=20)), dtype=np.int64)
    assert np.array_equal(Order(num_rows, 3).rows(5, positions), full_order(num_rows, seed=3, epoch=5)[positions])


def test_epochs_and_seeds_differ_and_repeat():
    """Guard against a fixed order: train-CLIP never shuffled on its fast path."""
    orders = [tuple(full_order(500, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({*orders, tuple(range(500))}) == 5
    assert tuple(full_order(500, seed=1, epoch=1)) == orders[3]


def test_the_order_is_the_same_in_every_version():
    """Pin the order: checkpoints store positions, so the rows at them must never change."""
    assert full_order(10).tolist() == [8, 2, 7, 1, 9, 6, 4, 5, 3, 0]
    assert Order(400_000_000, 7).rows(3, np.array([0, 123_456_789, 399_999_999])).tolist() == [
        190044956,
        21389316,
        161061628,
    ]


def test_without_shuffling_rows_keep_their_order():
    positions = np.array([3, 1, 400])
    assert Order(1000, shuffle=False).rows(7, positions) is positions


@pytest.mark.slow
def test_every_row_is_equally_likely_at_every_position():
    counts = np.zeros((300, 300))
    for epoch in range(600):
        counts[np.arange(300), full_order(300, epoch=epoch)] += 1
    expected = 600 / 300
    freedom = 299**2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_all_permutations_of_four_are_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(600):
        order = tuple(full_order(4, epoch=epoch))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 25) ** 2 / 25 for count in counts.values()) < 60


def test_rows_of_a_large_source_are_equally_likely_at_every_position():
    """Follow 160 of 100,000 rows, each of another block, through 60 epochs."""
    rows = np.arange(160) * 620 + 17
    counts = np.zeros(20)
    for epoch in range(60):
        order = full_order(100_000, seed=11, epoch=epoch)
        position_of = np.empty(len(order), dtype=np.int64)
        position_of[order] = np.arange(len(order))
        counts += np.bincount(position_of[rows] // 5_000, minlength=20)
    expected = 160 * 60 / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45, (
        "chi-square with 19 degrees of freedom exceeds this once in 1,400 times"
    )


def test_neighbours_come_from_different_blocks():
    rows = full_order(100_000)
    same_block = rows[1:] // BLOCK_ROWS == rows[:-1] // BLOCK_ROWS
    assert same_block.mean() < 1.2 / WINDOW_BLOCKS
    assert abs(np.corrcoef(rows[1:], rows[:-1])[0, 1]) < 0.1
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.1


def test_a_window_reads_few_blocks():
    """Check that shuffled reading stays cheap: neighbouring positions are stored together."""
    rows = full_order(100_000)
    window = rows[: WINDOW_BLOCKS * BLOCK_ROWS]
    assert len(np.unique(window // BLOCK_ROWS)) <= 2 * WINDOW_BLOCKS


def test_memory_does_not_grow_with_the_number_of_rows():
    import tracemalloc

    order = Order(400_000_000, 1)
    tracemalloc.start()
    order.rows(2, np.arange(1_000_000, 1_000_256))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@given(st.integers(2, 3000), st.floats(1e-6, 0.999))
def test_hold_out_splits_all_rows_and_no_side_is_empty(num_rows, fraction):
    train, val = hold_out(num_rows, fraction)
    train_rows, val_rows = train[np.arange(len(train))], val[np.arange(len(val))]
    assert len(train) > 0
    assert len(val) > 0
    assert np.array_equal(np.sort(np.concatenate([train_rows, val_rows])), np.arange(num_rows))
    assert (np.diff(train_rows) > 0).all()


@given(st.integers(2, 2000), st.integers(0, 2000), st.floats(0.001, 0.999))
def test_rows_added_later_do_not_move_earlier_rows(num_rows, more, fraction):
    _, before = hold_out(num_rows, fraction)
    _, after = hold_out(num_rows + more, fraction)
    later = after[np.arange(len(after))]
    assert np.array_equal(before[np.arange(len(before))], later[later < num_rows])


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.1, 0.3, 0.5, 0.8])
def test_hold_out_takes_the_requested_share(fraction):
    _, val = hold_out(1_000_000, fraction)
    assert len(val) == pytest.approx(1_000_000 * fraction, abs=1)


def test_hold_out_does_not_follow_a_pattern_of_the_data():
    """Check that each of ten alternating classes has its share."""
    _, val = hold_out(100_000, 0.1)
    classes = np.bincount(val[np.arange(len(val))] % 10)
    assert classes.min() > 850
    assert classes.max() < 1150


def test_the_split_is_the_same_in_every_version():
    """Pin the split: rows that an earlier run held out must stay held out."""
    _, val = hold_out(400_000_000, 0.02)
    assert val[np.array([0, 1, 2, 7_999_999])].tolist() == [1, 97, 110, 399999975]


def test_hold_out_with_fraction_zero():
    train, val = hold_out(7, 0)
    assert (len(train), len(val)) == (7, 0)
    assert train[np.arange(7)].tolist() == list(range(7))


@pytest.mark.parametrize(("num_rows", "fraction"), [(1, 0.5), (0, 0.1), (10, 1.0), (10, -0.1), (10, float("nan"))])
def test_hold_out_raises_for_invalid_fractions_and_too_few_rows(num_rows, fraction):
    with pytest.raises(ConfigError, match="cannot hold out"):
        hold_out(num_rows, fraction)
