"""Conversion of any value to one that a lake can store and return, with a name for everything that is changed.

Deep Lake commits some values and can then not open the dataset again. It keeps the smallest and the largest number of
each chunk and their sum in a log of JSON, and an infinite number is not JSON; neither is the sum of two numbers of
1e308. It also keeps the most frequent text of each chunk there, however long, and parses all of it on opening.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import pathlib
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence, Set

import numpy as np

#: Limit on the size of a text in UTF-8, also of a list or a dictionary as JSON.
MAX_TEXT_BYTES = 4 * 2**20
#: Limit on the magnitude of a number: Deep Lake adds up the numbers of a chunk, and the sum must be finite.
MAX_FLOAT = 1e290
#: Limit on the number of digits of an integer; Python converts no more of them to text.
MAX_DIGITS = 4_300
#: Limit on the nesting of lists and dictionaries.
MAX_DEPTH = 100

INFINITE = "infinite number, stored as missing"
TOO_LARGE = f"number beyond ±{MAX_FLOAT:g}, stored as missing"
TOO_MANY_DIGITS = f"integer of more than {MAX_DIGITS:,} digits, stored as missing"
TOO_LONG = f"text of more than {MAX_TEXT_BYTES // 2**20} MiB, stored as missing"
TOO_DEEP = f"more than {MAX_DEPTH} levels of lists, stored as missing"
BROKEN_TEXT = "broken characters (lone surrogates), stored as U+FFFD"
SAME_KEY = "several keys that are the same as text, the first of which is stored"

#: What `plain_value` returns.
Plain = str | int | float | bool | None

_LARGEST_INT = 10**MAX_DIGITS
_AS_TEXT = (decimal.Decimal, uuid.UUID, pathlib.PurePath, datetime.timedelta, complex)


def plain_value(value: object, problems: Counter[str]) -> Plain:
    """Convert a value to text, a number, or None if it is missing.

    Numbers stay numbers, also those of numpy. Dates and times become text in ISO 8601, decimals and durations text,
    bytes hexadecimal text, lists and dictionaries JSON. NaN stays NaN, which stands for a missing number.

    Args:
        value: the value.
        problems: counts what is changed, by reason.
    """
    if isinstance(value, str) and type(value) is str and len(value) <= MAX_TEXT_BYTES // 4:
        return _clean(value, problems)
    if value is None or type(value) is bool:
        return value
    try:
        simple = _simplify(value, problems, 0)
    except RecursionError:  # of Python's own conversion of a numpy array of objects
        simple = _missing(TOO_DEEP, problems)
    if isinstance(simple, (list, dict)):
        simple = json.dumps(simple, ensure_ascii=False)
    if isinstance(simple, str) and len(simple) > MAX_TEXT_BYTES // 4 and len(simple.encode()) > MAX_TEXT_BYTES:
        return _missing(TOO_LONG, problems)
    return simple


def clean_text(text: str) -> str:
    """Replace lone surrogates, which come from broken JSON or file names and which UTF-8 cannot hold, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def is_storable_number(value: float) -> bool:
    """Return True if a number is finite and small enough for a column of numbers."""
    return abs(value) <= MAX_FLOAT  # False for NaN


def _clean(text: str, problems: Counter[str]) -> str:
    cleaned = clean_text(text)
    if cleaned is not text and cleaned.count("\ufffd") > text.count("\ufffd"):
        problems[BROKEN_TEXT] += 1
    return cleaned


def _missing(reason: str, problems: Counter[str]) -> float | None:
    problems[reason] += 1
    return None


def _simplify(
    value: object, problems: Counter[str], depth: int
) -> str | int | float | list[object] | dict[str, object] | None:
    """Convert a value to what JSON can hold, except for NaN at depth 0."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, enum.Enum) and not isinstance(value, (str, int, float)):
        value = value.value
    if isinstance(value, str):
        return _clean(str.__str__(value), problems)
    if isinstance(value, (np.datetime64, np.timedelta64)):  # the latter is a subclass of np.integer
        return None if np.isnat(value) else str(value)
    if isinstance(value, (int, np.integer)):
        number = int(value)
        return number if abs(number) < _LARGEST_INT else _missing(TOO_MANY_DIGITS, problems)
    if isinstance(value, (float, np.floating)):
        return _simplify_float(float(value), problems, depth)
    return _simplify_other(value, problems, depth)


def _simplify_float(number: float, problems: Counter[str], depth: int) -> float | None:
    if math.isnan(number):
        return None if depth else number
    if math.isinf(number):
        return _missing(INFINITE, problems)
    # Within JSON any finite number is fine.
    return number if depth or is_storable_number(number) else _missing(TOO_LARGE, problems)


def _simplify_other(
    value: object, problems: Counter[str], depth: int
) -> str | int | float | list[object] | dict[str, object] | None:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        # Only pandas's NaT, a missing time, differs from itself.
        return value.isoformat() if value == value else None
    if isinstance(value, decimal.Decimal) and not value.is_finite():
        return None if value.is_nan() else _missing(INFINITE, problems)
    if isinstance(value, _AS_TEXT):
        return _clean(str(value), problems)
    if depth > MAX_DEPTH:
        return _missing(TOO_DEEP, problems)
    if isinstance(value, Mapping):
        return _simplify_mapping(value, problems, depth)
    if isinstance(value, (Sequence, Set)):
        items = sorted(value, key=repr) if isinstance(value, Set) else value
        return [_simplify(item, problems, depth + 1) for item in items]
    if callable(to_list := getattr(value, "tolist", None)):  # arrays of numpy and PyTorch, and their scalars
        plain = to_list()
        if type(plain) is not type(value):
            return _simplify(plain, problems, depth)
    return _missing(f"value of type {type(value).__name__}, stored as missing", problems)


def _simplify_mapping(values: Mapping[object, object], problems: Counter[str], depth: int) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in values.items():
        key = name if isinstance(name, str) else _key(name)
        key = _clean(key, problems)
        if key in result:
            problems[SAME_KEY] += 1
        else:
            result[key] = _simplify(value, problems, depth + 1)
    return result


def _key(name: object) -> str:
    if isinstance(name, bytes):
        return name.hex()
    try:
        return str(name)
    except ValueError:  # an integer of too many digits
        return type(name).__name__
