"""Summaries of a column's values: the range of numbers, the values of labels, examples of other texts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lakeclip.lake.columns import is_readable
from lakeclip.lake.statistics.counters import MostCommon, NumberStats

#: The values of a column are listed if it has at most so many distinct ones.
_MAX_LISTED = 20
_NUM_SHOWN = 5
_MAX_CHARACTERS = 80

_PLAIN = re.compile(r"(nullable\[)?(u?int\d+|float\d+|bool|text\b.*)\]?|kind=class_label.*")
_LABELS = ("label", "labels", "class", "class_name", "class_label", "category", "target")


@dataclass
class ColumnContent:
    """Summary of one column's values in the rows that were read.

    Attributes:
        missing: number of rows without a value.
        distinct: number of distinct values; None if there are too many to count.
        min, median, max: of numbers.
        common: the most common values and their counts, if there are few distinct ones.
        examples: two values, if there are many.
    """

    missing: int = 0
    distinct: int | None = None
    min: float | None = None
    median: float | None = None
    max: float | None = None
    common: list[tuple[str, int]] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def one_line(self) -> str:
        """The summary as one line."""
        parts = []
        if self.min is not None and self.max is not None and self.median is not None and self.distinct != 1:
            parts.append(
                f"{_format_number(self.min)} to {_format_number(self.max)}, median {_format_number(self.median)}"
            )
        if self.common:
            shown = ", ".join(f"{value} ({count:,})" for value, count in self.common)
            num_others = (self.distinct or 0) - len(self.common)
            parts.append(shown + (f" and {num_others:,} more" if num_others > 0 else ""))
        elif self.examples:
            number = "very many" if self.distinct is None else f"{self.distinct:,}"
            parts.append(f"{number} distinct, such as {', '.join(self.examples)}")
        if self.missing:
            parts.append(f"{self.missing:,} missing" if parts else "empty")
        return "; ".join(parts)


class ColumnStats:
    """Statistics of one column's values, added block by block."""

    def __init__(self) -> None:
        self._missing = 0
        self._numbers = NumberStats()
        self._values: MostCommon[str | int | float | bool] = MostCommon()
        self._has_fractions = False

    def add(self, values: Sequence[object]) -> None:
        """Add a block of values, as `Lake.values` returns it."""
        present = [value for value in (_to_python(value) for value in values) if value is not None]
        self._missing += len(values) - len(present)
        self._values.add(present)
        numbers = [value for value in present if isinstance(value, (int, float)) and not isinstance(value, bool)]
        self._has_fractions = self._has_fractions or any(isinstance(number, float) for number in numbers)
        self._numbers.add(numbers)

    def content(self) -> ColumnContent:
        """Return the summary of the values so far."""
        numbers = self._numbers
        content = ColumnContent(self._missing, len(self._values) if self._values.is_exact else None)
        content.min, content.median, content.max = numbers.min, numbers.median, numbers.max
        if self._values.is_exact and 0 < len(self._values) <= _MAX_LISTED and not self._has_fractions:
            content.common = [(_shorten(value), count) for value, count in self._values.most_common(_NUM_SHOWN)]
        elif not numbers.count:
            content.examples = [_shorten(value) for value, _ in self._values.most_common(2)]
        return content


def is_plain(type_name: str) -> bool:
    """Return True if a column holds one text, number or boolean per row; not an image, a vector or a list."""
    return is_readable(type_name) and _PLAIN.fullmatch(type_name) is not None


def find_label_columns(columns: dict[str, str]) -> list[str]:
    """Return the columns that look like class labels, by name or type."""
    return [
        name
        for name, kind in columns.items()
        if is_plain(kind) and (name.lower() in _LABELS or kind.startswith("kind=class_label"))
    ]


def show_value(value: object) -> str:
    """Return a value of a plain column as text; "" if it is missing."""
    python_value = _to_python(value)
    return "" if python_value is None else str(python_value)


def _to_python(value: object) -> str | int | float | bool | None:
    """Convert a value to a Python one; return None for a missing one."""
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float)) and value != "" else None


def _format_number(number: float) -> str:
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:,.0f}" if number.is_integer() and abs(number) < 2**53 else f"{number:.4g}"


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
