from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.lake.schema import (
    COLUMNS,
    MISSING_INT,
    Kind,
    clean_text,
    convert,
    dump_captions,
    kind_of,
    load_captions,
    metadata_column,
)

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.lists(st.integers())
)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], None),
        ([True, False], Kind.BOOL),
        ([True, None], Kind.INT),
        ([True, 3], Kind.INT),
        ([1, 2.5], Kind.FLOAT),
        ([2**53 + 1, 2.5], Kind.TEXT),
        ([2**63], Kind.TEXT),
        ([MISSING_INT], Kind.TEXT),
        ([1, "x"], Kind.TEXT),
        ([[1]], Kind.TEXT),
    ],
)
def test_the_narrowest_kind_without_loss(values: list[object], kind: Kind | None) -> None:
    assert kind_of(values) == kind


@given(st.lists(VALUES, min_size=1))
def test_no_value_changes_in_its_column(values: list[object]) -> None:
    """Deep Lake casts silently (int32: 5.7 becomes 5, 2**40 becomes 0): values must fit before they reach it."""
    kind = kind_of(values)
    if kind is None:
        assert set(values) == {None}
        return
    for value in values:
        stored = convert(value, kind)
        if value is None:
            assert stored == kind.missing or math.isnan(float(stored))
        elif kind is Kind.TEXT:
            assert stored == value or json.loads(str(stored)) == value
        else:
            assert stored == value


@given(st.lists(VALUES), st.lists(VALUES))
def test_a_kind_only_widens(first: list[object], second: list[object]) -> None:
    before = kind_of(first)
    after = kind_of(second, before)
    assert before is None or (after is not None and after >= before)


@given(st.sets(st.text(max_size=3) | st.sampled_from([*COLUMNS, "text_meta", "text_meta_meta", ""]), max_size=10))
def test_metadata_never_takes_our_columns_nor_each_others(names: set[str]) -> None:
    columns = {metadata_column(name) for name in names}
    assert len(columns) == len(names)
    assert not columns & COLUMNS.keys()
    assert "" not in columns


@given(st.lists(st.text()))
def test_captions_come_back(captions: list[str]) -> None:
    assert list(load_captions(dump_captions(captions))) == captions


@pytest.mark.parametrize("stored", ["a cat", "[a cat", "[1, 2]", '"quoted"'])
def test_plain_captions_stay_as_they_are(stored: str) -> None:
    assert load_captions(stored) == (stored,)
    assert load_captions("") == load_captions(None) == ()


def test_halves_of_surrogate_pairs_do_not_reach_the_lake() -> None:
    assert clean_text("a\ud800b") == "a\ufffdb"
    assert clean_text("\ud83d\ude00") == "😀"


def test_captions_nested_without_end_are_a_caption() -> None:
    """As a lake from elsewhere may hold them: JSON's reader gives up, and that is no reason to end a run."""
    stored = "[" * 100_000
    assert load_captions(stored) == (stored,)
