"""Counting without end in memory that does have one: lengths, the most common values, repeats."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

#: Widths of a histogram's bins.
_STEPS = [factor * 10**power for power in range(10) for factor in (1, 2, 5)]
_MOST_BINS = 16

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Smallest, median, mean and largest of some numbers."""

    min: int
    median: float
    mean: float
    max: int


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: how many numbers are from `low` to `high`, both included; None is without end."""

    low: int
    high: int | None
    count: int


def spread(counts: Mapping[int, int]) -> Spread | None:
    """Of numbers, given as number → how often; None if there are none."""
    if not counts:
        return None
    numbers = np.array(sorted(counts))
    ends = np.cumsum([counts[number] for number in numbers.tolist()])
    total = int(ends[-1])
    middle = numbers[np.searchsorted(ends, [(total - 1) // 2, total // 2], side="right")]
    mean = sum(number * count for number, count in counts.items()) / total
    return Spread(int(numbers[0]), float(middle.mean()), round(mean, 2), int(numbers[-1]))


def histogram(counts: Mapping[int, int], last: int | None = None) -> list[Bin]:
    """Bins of round and equal width, and a last one without end for the few that lie far out.

    Args:
        counts: number → how often.
        last: the bins of equal width end with this number. Default: where 95% of the numbers do.
    """
    if not counts:
        return []
    numbers = sorted(counts)
    ends = np.cumsum([counts[number] for number in numbers])
    end = last if last is not None else numbers[int(np.searchsorted(ends, math.ceil(0.95 * int(ends[-1]))))]
    first = min(numbers[0], end)
    step = next(step for step in _STEPS if end // step - first // step < _MOST_BINS)
    if last is None:
        end = end // step * step + step - 1
    beyond = sum(count for number, count in counts.items() if number > end)
    in_bin: Counter[int] = Counter()
    for number, count in counts.items():
        if number <= end:
            in_bin[number // step * step] += count
    bins = [Bin(low, min(low + step - 1, end), in_bin[low]) for low in range(first // step * step, end + 1, step)]
    return [*bins, Bin(end + 1, None, beyond)] if beyond else bins


class MostCommon(Generic[Value]):
    """The values that occur most often. Beyond some 100,000 distinct ones the rare are dropped, and counts are too low.

    Attributes:
        is_exact: whether none has been dropped.
    """

    def __init__(self, most: int = 50_000) -> None:
        self._most = most
        self._counts: Counter[Value] = Counter()
        self.is_exact = True

    def add(self, values: Iterable[Value]) -> None:
        """Count these."""
        self._counts.update(values)
        if len(self._counts) > 2 * self._most:
            self._counts = Counter(dict(self._counts.most_common(self._most)))
            self.is_exact = False

    def __len__(self) -> int:
        """How many distinct values are known."""
        return len(self._counts)

    def top(self, most: int | None = None) -> list[tuple[Value, int]]:
        """The most common values with their counts."""
        return self._counts.most_common(most)


class Repeats:
    """How many of a stream of values occur more than once.

    Exact up to so many distinct values; beyond, by an even sample of the *distinct* values (those whose hash ends in
    zeros, Gibbons 2001): all copies of a value are in it or none, so that its share of repeats is that of the whole.
    """

    def __init__(self, most: int = 200_000) -> None:
        self._most = most
        self._mask = 0
        self._counts: Counter[int] = Counter()

    def add(self, value: bytes) -> None:
        """Count this."""
        number = int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big")
        if number & self._mask:
            return
        self._counts[number] += 1
        while len(self._counts) > self._most:
            self._mask = 2 * self._mask + 1
            self._counts = Counter({number: n for number, n in self._counts.items() if not number & self._mask})

    @property
    def is_exact(self) -> bool:
        """Whether every value was counted."""
        return not self._mask

    @property
    def share(self) -> float:
        """Of the values, how many occur more than once: 0 to 1."""
        return sum(n for n in self._counts.values() if n > 1) / (self._counts.total() or 1)


class Numbers:
    """Smallest, largest and median of a stream. The median is of an even sample where there are very many."""

    def __init__(self, most: int = 200_000) -> None:
        self._most = most
        self._stride = 1
        self._kept: list[float] = []
        self.count = 0
        self.min: float | None = None
        self.max: float | None = None

    def add(self, values: list[float]) -> None:
        """Take in these, all finite."""
        if not values:
            return
        self.min = min(values) if self.min is None else min(self.min, min(values))
        self.max = max(values) if self.max is None else max(self.max, max(values))
        self._kept += values[-self.count % self._stride :: self._stride]
        self.count += len(values)
        while len(self._kept) > self._most:
            self._kept = self._kept[::2]
            self._stride *= 2

    @property
    def median(self) -> float | None:
        """None if there are none."""
        return float(np.median(np.array(self._kept, dtype=np.float64))) if self._kept else None


def percent(share: float) -> str:
    """A share as it is shown; neither a little nor nearly all is rounded away."""
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < share < 1 else f"{share:.1%}"
