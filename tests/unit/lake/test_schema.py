from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
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
from lakeclip.lake.values import MAX_FLOAT

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


def is_missing(value: object) -> bool:
    """Return True for None and for numbers that Deep Lake cannot read back."""
    return value is None or (isinstance(value, float) and abs(value) > MAX_FLOAT)


@given(st.lists(VALUES, min_size=1))
@example([1.1e290, ""])
@example([1.1e290])
def test_values_are_stored_without_loss(values: list[object]) -> None:
    """Store values that fit, because Deep Lake casts silently (int32: 5.7 becomes 5, 2**40 becomes 0)."""
    kind = kind_of(values)
    if kind is None:
        assert all(is_missing(value) for value in values)
        return
    for value in values:
        stored = convert(value, kind)
        if is_missing(value):
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
def test_metadata_columns_are_unique_and_never_reserved(names: set[str]) -> None:
    columns = {metadata_column(name) for name in names}
    assert len(columns) == len(names)
    assert not columns & COLUMNS.keys()
    assert "" not in columns


@given(st.lists(st.text()))
def test_captions_are_loaded_as_they_were_dumped(captions: list[str]) -> None:
    assert list(load_captions(dump_captions(captions))) == captions


@pytest.mark.parametrize("stored", ["a cat", "[a cat", "[1, 2]", '"quoted"'])
def test_plain_captions_are_loaded_unchanged(stored: str) -> None:
    assert load_captions(stored) == (stored,)
    assert load_captions("") == load_captions(None) == ()


def test_lone_surrogates_are_replaced() -> None:
    assert clean_text("a\ud800b") == "a\ufffdb"
    assert clean_text("\ud83d\ude00") == "😀"


def test_deeply_nested_json_is_a_plain_caption() -> None:
    """Do not raise if the JSON parser gives up: lakes that lakeclip did not write may hold such text."""
    stored = "[" * 100_000
    assert load_captions(stored) == (stored,)
