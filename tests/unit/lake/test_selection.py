from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.lake.selection import Selection


@given(st.integers(1, 5_000), st.floats(0, 1), st.integers(0, 2**32))
def test_positions_map_to_the_selected_rows(total: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(random.random(total) < share)
    selection = Selection(rows, total)
    positions = random.integers(0, max(1, len(rows)), 50 if len(rows) else 0)
    assert len(selection) == len(rows)
    assert (selection[positions] == rows[positions]).all()
    assert (pickle.loads(pickle.dumps(selection))[positions] == rows[positions]).all()


def test_an_order_other_than_ascending_is_kept() -> None:
    rows = np.array([5, 3, 3, 900_000])
    assert (Selection(rows, 1_000_000)[np.array([0, 1, 2, 3])] == rows).all()


def test_ten_million_rows_take_one_bit_each() -> None:
    rows = np.arange(0, 10_000_000, 2)
    selection = Selection(rows, 10_000_000)
    assert len(pickle.dumps(selection)) < 1.5e6
    assert (selection[np.array([0, 4_999_999, 77])] == [0, 9_999_998, 154]).all()
