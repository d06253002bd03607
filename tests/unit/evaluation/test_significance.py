"""Whether a difference is more than chance: by hand, and by what must hold for any two models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.evaluation.significance import Difference, adjust, paired_difference, share_interval


def answers(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.repeat([True, True, False, False], [both, first, second, neither]),
        np.repeat([True, False, True, False], [both, first, second, neither]),
    )


def test_by_hand() -> None:
    found = paired_difference(*answers(50, 1, 9, 40))
    assert (found.only_first, found.only_second) == (1, 9)
    assert found.share == pytest.approx(0.08)
    # 2 · (C(10,0) + C(10,1)) / 2¹⁰
    assert found.p_value == pytest.approx(22 / 1024)
    assert found.verdict == "better"
    # (9 - 1) / 102 ± 1.96 · √((11 / 102 - (8 / 102)²) / 102)
    assert found.interval == pytest.approx((0.01656, 0.14030), abs=1e-4)


def test_the_same_answers_are_no_difference() -> None:
    found = paired_difference(*answers(5, 0, 0, 5))
    assert (found.share, found.p_value, found.verdict) == (0.0, 1.0, "not told apart")
    assert found.interval[0] < 0 < found.interval[1]


counts = st.integers(0, 60)


@given(counts, counts, counts, counts)
def test_what_holds_for_any_two(both: int, first: int, second: int, neither: int) -> None:
    one, other = answers(both, first, second, neither)
    if not len(one):
        with pytest.raises(ValueError, match="0 and 0 samples"):
            paired_difference(one, other)
        return
    found, turned = paired_difference(one, other), paired_difference(other, one)
    assert found.share == -turned.share == pytest.approx(other.mean() - one.mean())
    assert found.p_value == pytest.approx(turned.p_value)
    assert found.interval == pytest.approx(tuple(-end for end in reversed(turned.interval)))
    assert -1 <= found.interval[0] <= found.interval[1] <= 1
    assert 0 < found.p_value <= 1


def test_chance_is_called_a_difference_seldom() -> None:
    """Of pairs of models that are equally good, at most one in twenty."""
    rng = np.random.default_rng(0)
    found = [paired_difference(*(rng.random((2, 300)) < 0.6)) for _ in range(400)]
    assert np.mean([one.verdict != "not told apart" for one in found]) <= 0.06
    assert np.mean([one.interval[0] <= 0 <= one.interval[1] for one in found]) >= 0.93


def test_several_comparisons_are_held_to_more() -> None:
    given = [Difference(0.1, (0.0, 0.2), p, 1, 2) for p in (0.03, 0.01, 0.04, 0.9)]
    assert [one.p_value for one in adjust(given)] == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert [one.verdict for one in adjust(given)] == ["not told apart", "better", "not told apart", "not told apart"]
    assert adjust(given[:1]) == given[:1]
    assert adjust([]) == []


def test_the_interval_of_a_share() -> None:
    assert share_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert share_interval(0.0, 20)[0] == 0.0
    assert share_interval(1.0, 20)[1] == 1.0
