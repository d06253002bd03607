from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lakeclip.lake.statistics.counters import (
    Bin,
    MostCommon,
    NumberStats,
    RepeatCounter,
    Stats,
    format_percent,
    histogram,
    stats_of_counts,
)


def test_stats_of_counts_equal_those_of_the_numbers() -> None:
    numbers = np.random.default_rng(0).integers(-5, 40, 1001)
    for some in (numbers, numbers[:1000], numbers[:1], numbers[:2]):
        found = stats_of_counts(Counter(some.tolist()))
        expected = (int(some.min()), float(np.median(some)), round(float(some.mean()), 2), int(some.max()))
        assert found == Stats(*expected)
    assert stats_of_counts({}) is None


def test_a_histogram_has_round_bins_and_counts_everything() -> None:
    counts = {3: 5, 4: 1, 9: 2}
    assert histogram(counts) == [Bin(low, low, counts.get(low, 0)) for low in range(3, 10)]
    assert histogram({}) == []
    rng = np.random.default_rng(0)
    for scale in (1, 7, 90, 5_000):
        many = Counter(rng.geometric(1 / scale, 3_000).tolist())
        bins = histogram(many)
        assert len(bins) <= 17
        assert sum(one.count for one in bins) == 3_000
        for one in bins:
            assert one.count == sum(n for number, n in many.items() if one.low <= number <= (one.high or 10**9))


def test_outliers_do_not_widen_the_bins_of_a_histogram() -> None:
    bins = histogram({**dict.fromkeys(range(1, 11), 100), 5_000: 1})
    assert bins[0] == Bin(1, 1, 100)
    assert bins[-1] == Bin(11, None, 1)


def test_the_last_bin_of_a_histogram_holds_what_exceeds_the_limit() -> None:
    bins = histogram({4: 1, 75: 2, 77: 3, 78: 5, 400: 6}, last=77)
    assert bins[-2:] == [Bin(75, 77, 5), Bin(78, None, 11)]
    assert (bins[0].low, sum(one.count for one in bins)) == (0, 17)
    assert histogram({90: 1}, last=77) == [Bin(77, 77, 0), Bin(78, None, 1)]


def test_the_most_common_values_are_found_in_bounded_memory() -> None:
    common = MostCommon[str](capacity=100)
    for block in range(50):
        common.add([f"rare {block} {i}" for i in range(50)] + ["a", "a", "b"])
        assert len(common) <= 200
    assert common.most_common(2) == [("a", 100), ("b", 50)]
    assert not common.is_exact


@pytest.mark.parametrize("capacity", [100_000, 500])
def test_the_share_of_repeats_is_exact_or_estimated_closely(capacity: int) -> None:
    repeats = RepeatCounter(capacity)
    for i in range(6_000):
        repeats.add(b"once %d" % i)
    for i in range(2_000):
        repeats.add(b"twice %d" % (i % 1_000))
    assert repeats.is_exact == (capacity == 100_000)
    assert repeats.share == pytest.approx(0.25, abs=0 if repeats.is_exact else 0.06)
    assert RepeatCounter().share == 0


def test_a_median_in_bounded_memory() -> None:
    numbers = NumberStats(capacity=100)
    values = np.random.default_rng(0).permutation(10_001).tolist()
    for start in range(0, len(values), 37):
        numbers.add(values[start : start + 37])
    assert (numbers.min, numbers.max, numbers.count) == (0, 10_000, 10_001)
    assert numbers.median == pytest.approx(5_000, abs=1_500)
    exact = NumberStats()
    exact.add([3, 1, 2**60])
    assert (exact.min, exact.median, exact.max) == (1, 3.0, 2**60)
    assert NumberStats().median is None


def test_small_shares_are_not_rounded_to_zero() -> None:
    assert [format_percent(share) for share in (0, 0.00001, 0.25, 0.99999, 1)] == [
        "0.0%",
        "<0.1%",
        "25.0%",
        ">99.9%",
        "100.0%",
    ]
