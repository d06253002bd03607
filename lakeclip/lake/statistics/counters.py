"""Streaming statistics in bounded memory: lengths, the most common values, repeats."""

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
_MAX_BINS = 16

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Stats:
    """Minimum, median, mean and maximum of some numbers."""

    min: int
    median: float
    mean: float
    max: int


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: the count of numbers from `low` to `high`, both included; None means no upper limit."""

    low: int
    high: int | None
    count: int


def stats_of_counts(counts: Mapping[int, int]) -> Stats | None:
    """Compute the statistics of numbers, given as number → count; return None if there are none."""
    if not counts:
        return None
    numbers = np.array(sorted(counts))
    ends = np.cumsum([counts[number] for number in numbers.tolist()])
    total = int(ends[-1])
    middle = numbers[np.searchsorted(ends, [(total - 1) // 2, total // 2], side="right")]
    mean = sum(number * count for number, count in counts.items()) / total
    return Stats(int(numbers[0]), float(middle.mean()), round(mean, 2), int(numbers[-1]))


def histogram(counts: Mapping[int, int], last: int | None = None) -> list[Bin]:
    """Return bins of round and equal width, and a last bin without upper limit for outliers.

    Args:
        counts: number → count.
        last: upper limit of the bins of equal width; by default the 95th percentile.
    """
    if not counts:
        return []
    numbers = sorted(counts)
    ends = np.cumsum([counts[number] for number in numbers])
    end = last if last is not None else numbers[int(np.searchsorted(ends, math.ceil(0.95 * int(ends[-1]))))]
    first = min(numbers[0], end)
    step = next(step for step in _STEPS if end // step - first // step < _MAX_BINS)
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
    """Counter of the most common values. Beyond twice its capacity rare values are dropped, and counts are too low.

    Args:
        capacity: number of distinct values that are kept when values are dropped.

    Attributes:
        is_exact: True if no value has been dropped.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self._capacity = capacity
        self._counts: Counter[Value] = Counter()
        self.is_exact = True

    def add(self, values: Iterable[Value]) -> None:
        """Count values."""
        self._counts.update(values)
        if len(self._counts) > 2 * self._capacity:
            self._counts = Counter(dict(self._counts.most_common(self._capacity)))
            self.is_exact = False

    def __len__(self) -> int:
        """Return the number of distinct values that are kept."""
        return len(self._counts)

    def most_common(self, n: int | None = None) -> list[tuple[Value, int]]:
        """Return the `n` most common values with their counts; all values by default."""
        return self._counts.most_common(n)


class RepeatCounter:
    """Estimator of the share of values in a stream that occur more than once.

    Exact up to `capacity` distinct values. Beyond, it uses an even sample of the *distinct* values (those whose hash
    ends in zeros; Gibbons 2001): all copies of a value are in the sample or none, so the share of repeats is unbiased.
    """

    def __init__(self, capacity: int = 200_000) -> None:
        self._capacity = capacity
        self._mask = 0
        self._counts: Counter[int] = Counter()

    def add(self, value: bytes) -> None:
        """Count a value."""
        number = int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "big")
        if number & self._mask:
            return
        self._counts[number] += 1
        while len(self._counts) > self._capacity:
            self._mask = 2 * self._mask + 1
            self._counts = Counter({number: n for number, n in self._counts.items() if not number & self._mask})

    @property
    def is_exact(self) -> bool:
        """True if every value was counted."""
        return not self._mask

    @property
    def share(self) -> float:
        """Share of the values that occur more than once, 0 to 1."""
        return sum(n for n in self._counts.values() if n > 1) / (self._counts.total() or 1)


class NumberStats:
    """Minimum, maximum and median of a stream. Beyond `capacity` numbers the median is that of an even sample."""

    def __init__(self, capacity: int = 200_000) -> None:
        self._capacity = capacity
        self._stride = 1
        self._kept: list[float] = []
        self.count = 0
        self.min: float | None = None
        self.max: float | None = None

    def add(self, values: list[float]) -> None:
        """Add numbers, all of them finite."""
        if not values:
            return
        self.min = min(values) if self.min is None else min(self.min, min(values))
        self.max = max(values) if self.max is None else max(self.max, max(values))
        self._kept += values[-self.count % self._stride :: self._stride]
        self.count += len(values)
        while len(self._kept) > self._capacity:
            self._kept = self._kept[::2]
            self._stride *= 2

    @property
    def median(self) -> float | None:
        """Median of the numbers; None if there are none."""
        return float(np.median(np.array(self._kept, dtype=np.float64))) if self._kept else None


def format_percent(share: float) -> str:
    """Format a share; values near 0 and 1 become <0.1% and >99.9%."""
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < share < 1 else f"{share:.1%}"
