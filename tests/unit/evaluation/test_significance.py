"""Tests of significance: by hand, and properties that hold for any two models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.evaluation.significance import Difference, holm_adjust, paired_difference, wilson_interval


def paired_outcomes(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.repeat([True, True, False, False], [both, first, second, neither]),
        np.repeat([True, False, True, False], [both, first, second, neither]),
    )


def test_paired_difference_equals_hand_computed_values() -> None:
    difference = paired_difference(*paired_outcomes(50, 1, 9, 40))
    assert (difference.only_first, difference.only_second) == (1, 9)
    assert difference.share == pytest.approx(0.08)
    # 2 · (C(10,0) + C(10,1)) / 2¹⁰
    assert difference.p_value == pytest.approx(22 / 1024)
    assert difference.verdict == "better"
    # (9 - 1) / 102 ± 1.96 · √((11 / 102 - (8 / 102)²) / 102)
    assert difference.interval == pytest.approx((0.01656, 0.14030), abs=1e-4)


def test_equal_predictions_do_not_differ() -> None:
    difference = paired_difference(*paired_outcomes(5, 0, 0, 5))
    assert (difference.share, difference.p_value, difference.verdict) == (0.0, 1.0, "not told apart")
    assert difference.interval[0] < 0 < difference.interval[1]


counts = st.integers(0, 60)


@given(counts, counts, counts, counts)
def test_properties_of_any_two_models(both: int, first: int, second: int, neither: int) -> None:
    left, right = paired_outcomes(both, first, second, neither)
    if not len(left):
        with pytest.raises(ValueError, match="0 and 0 samples"):
            paired_difference(left, right)
        return
    difference, reverse = paired_difference(left, right), paired_difference(right, left)
    assert difference.share == -reverse.share == pytest.approx(right.mean() - left.mean())
    assert difference.p_value == pytest.approx(reverse.p_value)
    assert difference.interval == pytest.approx(tuple(-end for end in reversed(reverse.interval)))
    assert -1 <= difference.interval[0] <= difference.interval[1] <= 1
    assert 0 < difference.p_value <= 1


def test_false_positive_rate_is_at_most_the_level() -> None:
    """Check that at most one in twenty pairs of equally good models differs significantly."""
    rng = np.random.default_rng(0)
    differences = [paired_difference(*(rng.random((2, 300)) < 0.6)) for _ in range(400)]
    assert np.mean([item.verdict != "not told apart" for item in differences]) <= 0.06
    assert np.mean([item.interval[0] <= 0 <= item.interval[1] for item in differences]) >= 0.93


def test_p_values_are_adjusted_for_several_comparisons() -> None:
    given = [Difference(0.1, (0.0, 0.2), p, 1, 2) for p in (0.03, 0.01, 0.04, 0.9)]
    assert [item.p_value for item in holm_adjust(given)] == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert [item.verdict for item in holm_adjust(given)] == [
        "not told apart",
        "better",
        "not told apart",
        "not told apart",
    ]
    assert holm_adjust(given[:1]) == given[:1]
    assert holm_adjust([]) == []


def test_wilson_interval() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(0.0, 20)[0] == 0.0
    assert wilson_interval(1.0, 20)[1] == 1.0
