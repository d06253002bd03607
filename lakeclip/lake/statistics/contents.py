"""What stands in a column, in a line: the range of numbers, the values of a label, a few examples of the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lakeclip.lake.columns import is_readable
from lakeclip.lake.survey.tally import MostCommon, Numbers

#: A column with no more distinct values than this has them listed.
_FEW = 20
_SHOWN = 5
_LONGEST = 80

_PLAIN = re.compile(r"(nullable\[)?(u?int\d+|float\d+|bool|text\b.*)\]?|kind=class_label.*")
_LABELS = ("label", "labels", "class", "class_name", "class_label", "category", "target")


@dataclass
class ColumnContent:
    """What stands in one column, of the rows that were looked at.

    Attributes:
        missing: rows without a value.
        distinct: how many values there are; None where there are too many to count.
        min, median, max: of numbers.
        common: the most common values and their counts, where there are few distinct ones.
        examples: two values, where there are many.
    """

    missing: int = 0
    distinct: int | None = None
    min: float | None = None
    median: float | None = None
    max: float | None = None
    common: list[tuple[str, int]] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        """All of it in a line."""
        parts = []
        if self.min is not None and self.max is not None and self.median is not None and self.distinct != 1:
            parts.append(f"{_figure(self.min)} to {_figure(self.max)}, median {_figure(self.median)}")
        if self.common:
            shown = ", ".join(f"{value} ({count:,})" for value, count in self.common)
            rest = (self.distinct or 0) - len(self.common)
            parts.append(shown + (f" and {rest:,} more" if rest > 0 else ""))
        elif self.examples:
            number = "very many" if self.distinct is None else f"{self.distinct:,}"
            parts.append(f"{number} distinct, such as {', '.join(self.examples)}")
        if self.missing:
            parts.append(f"{self.missing:,} missing" if parts else "nothing in it")
        return "; ".join(parts)


class ContentReader:
    """Takes in the values of one column, block by block."""

    def __init__(self) -> None:
        self._missing = 0
        self._numbers = Numbers()
        self._values: MostCommon[str | int | float | bool] = MostCommon()
        self._has_fractions = False

    def add(self, values: Sequence[object]) -> None:
        """Take in a block as `Lake.values` gives it."""
        known = [value for value in (_plain(value) for value in values) if value is not None]
        self._missing += len(values) - len(known)
        self._values.add(known)
        numbers = [value for value in known if isinstance(value, (int, float)) and not isinstance(value, bool)]
        self._has_fractions = self._has_fractions or any(isinstance(number, float) for number in numbers)
        self._numbers.add(numbers)

    def content(self) -> ColumnContent:
        """What has been found."""
        numbers = self._numbers
        found = ColumnContent(self._missing, len(self._values) if self._values.is_exact else None)
        found.min, found.median, found.max = numbers.min, numbers.median, numbers.max
        if self._values.is_exact and 0 < len(self._values) <= _FEW and not self._has_fractions:
            found.common = [(_shorten(value), count) for value, count in self._values.top(_SHOWN)]
        elif not numbers.count:
            found.examples = [_shorten(value) for value, _ in self._values.top(2)]
        return found


def is_plain(type_name: str) -> bool:
    """Whether a column holds one text, number or truth a row: those are read; images, vectors and lists are not."""
    return is_readable(type_name) and _PLAIN.fullmatch(type_name) is not None


def find_label_columns(columns: dict[str, str]) -> list[str]:
    """Columns that look like the classes of labelled images, by name or type."""
    return [
        name
        for name, kind in columns.items()
        if is_plain(kind) and (name.lower() in _LABELS or kind.startswith("kind=class_label"))
    ]


def show_value(value: object) -> str:
    """A value of a plain column as text; "" where it is missing."""
    plain = _plain(value)
    return "" if plain is None else str(plain)


def _plain(value: object) -> str | int | float | bool | None:
    """A value as Python has it, and None for a missing one."""
    if hasattr(value, "item"):  # numpy's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float)) and value != "" else None


def _figure(number: float) -> str:
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:,.0f}" if number.is_integer() and abs(number) < 2**53 else f"{number:.4g}"


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
