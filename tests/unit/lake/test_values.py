from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import uuid
from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pytest

from lakeclip.lake.schema import Kind, convert, kind_of, metadata_column, old_metadata_column
from lakeclip.lake.values import (
    BROKEN_TEXT,
    INFINITE,
    MAX_TEXT_BYTES,
    SAME_KEY,
    TOO_DEEP,
    TOO_LARGE,
    TOO_LONG,
    TOO_MANY_DIGITS,
    plain_value,
)


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (True, True),
        (np.bool_(False), False),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.5), 0.5),
        (np.array(7), 7),
        (np.array([[1, 2], [3, 4]]), "[[1, 2], [3, 4]]"),
        (np.str_("ä"), "ä"),
        (b"\x00\xff", "00ff"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), "2024-02-29T12:30:00+00:00"),
        (np.datetime64("2024-02-29T12:30:00.123456789"), "2024-02-29T12:30:00.123456789"),
        (np.datetime64("NaT"), None),
        (decimal.Decimal("0.10"), "0.10"),
        (decimal.Decimal("NaN"), None),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (PurePosixPath("a/b"), "a/b"),
        (Colour.RED, "red"),
        ((1, "x"), '[1, "x"]'),
        ({"b", "a"}, '["a", "b"]'),
        ({1: None, "x": [math.nan]}, '{"1": null, "x": [null]}'),
        ([1e308], "[1e+308]"),
        ("\ud83d\ude00", "😀"),
        ("a\0b", "a\0b"),
    ],
)
def test_values_without_loss(value: object, stored: object) -> None:
    problems: Counter[str] = Counter()
    plain = plain_value(value, problems)
    assert plain == stored
    assert type(plain) is type(stored)
    assert not problems


@pytest.mark.parametrize(
    ("value", "stored", "reason"),
    [
        (math.inf, None, INFINITE),
        (-math.inf, None, INFINITE),
        (np.float16("inf"), None, INFINITE),
        (decimal.Decimal("-Infinity"), None, INFINITE),
        ([1, math.inf], "[1, null]", INFINITE),
        ({"a": {"b": -math.inf}}, '{"a": {"b": null}}', INFINITE),
        (1.7e308, None, TOO_LARGE),
        pytest.param(10**5000, None, TOO_MANY_DIGITS, id="many digits"),
        pytest.param([10**5000], "[null]", TOO_MANY_DIGITS, id="many digits in a list"),
        ("a\ud800b", "a\ufffdb", BROKEN_TEXT),
        ({"\udcff": 1}, '{"\ufffd": 1}', BROKEN_TEXT),
        ({1: "a", "1": "b"}, '{"1": "a"}', SAME_KEY),
        ("a" * (MAX_TEXT_BYTES + 1), None, TOO_LONG),
        ("é" * (MAX_TEXT_BYTES // 2 + 1), None, TOO_LONG),
        (["a" * MAX_TEXT_BYTES], None, TOO_LONG),
        (object(), None, "value of type object, stored as missing"),
    ],
)
def test_what_cannot_be_stored_is_named(value: object, stored: object, reason: str) -> None:
    problems: Counter[str] = Counter()
    assert plain_value(value, problems) == stored
    assert problems == {reason: 1}


def test_deep_and_endless_lists_are_missing() -> None:
    endless: list[object] = []
    endless.append(endless)
    problems: Counter[str] = Counter()
    stored = plain_value(endless, problems)
    assert isinstance(stored, str)
    assert stored.endswith("null" + "]" * 101)
    assert json.loads(stored)
    assert problems == {TOO_DEEP: 1}


def test_text_of_the_largest_size_is_stored() -> None:
    problems: Counter[str] = Counter()
    assert plain_value("a" * MAX_TEXT_BYTES, problems) == "a" * MAX_TEXT_BYTES
    assert not problems


def test_nan_is_a_missing_number_in_every_kind_of_column() -> None:
    assert kind_of([math.nan]) is Kind.FLOAT
    assert kind_of([2**60, math.nan]) is Kind.INT
    assert kind_of([True, math.nan]) is Kind.INT
    assert convert(math.nan, Kind.INT) == Kind.INT.missing
    assert convert(math.nan, Kind.TEXT) == ""
    assert math.isnan(float(convert(math.inf, Kind.FLOAT)))


@pytest.mark.parametrize("name", ['size"', "a\nb", "a\0b", "\ud800", "x" * 300, "ä" * 300, "", "_meta", "__meta"])
def test_odd_names_become_columns_that_a_query_can_name(name: str) -> None:
    column = metadata_column(name)
    assert column.encode()
    assert len(column.encode()) <= 260
    assert not set(column) & set('"\n\0')
    assert metadata_column(column) == column or column.endswith("_meta")  # a copy of a lake keeps its columns


def test_different_odd_names_stay_different() -> None:
    names = ['a"', "a\n", "a\0", "a_", "\ud800", "\ud801", "\ufffd", "x" * 300, "x" * 301, "", "_meta", "_meta_meta"]
    assert len({metadata_column(name) for name in names}) == len(names)


def test_ordinary_names_are_the_columns_of_earlier_versions() -> None:
    for name in ["URL", "url", "row 2", " ", "a.b", "é", "width", "width_meta", "select", "a\\b", "", "*"]:
        assert metadata_column(name) == old_metadata_column(name)
