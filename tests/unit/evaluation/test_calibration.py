"""Calibration: the definition word for word, and what must hold of it whatever a model says."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lakeclip.evaluation.calibration import NUM_BINS, Bin, Calibration, calibration, softmax_confidence

ANSWERS = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60)


def found_of(answers: list[tuple[float, bool]]) -> Calibration:
    said, right = zip(*answers, strict=True)
    return calibration(torch.tensor(said, dtype=torch.float64), torch.tensor(right))


def by_hand(answers: list[tuple[float, bool]]) -> float:
    """Guo et al. 2017, section 2: bin m holds what lies in ((m - 1) / M, m / M]."""
    error = 0.0
    for m in range(1, NUM_BINS + 1):
        inside = [one for one in answers if max(1, math.ceil(one[0] * NUM_BINS)) == m]
        if inside:
            said, right = (statistics.fmean(column) for column in zip(*inside, strict=True))
            error += len(inside) / len(answers) * abs(right - said)
    return error


@given(ANSWERS)
def test_equals_the_definition(answers: list[tuple[float, bool]]) -> None:
    found = found_of(answers)
    assert found.error == pytest.approx(by_hand(answers), abs=1e-12)
    assert 0 <= found.error <= 1
    assert len(found.bins) == NUM_BINS
    assert sum(one.num_answers for one in found.bins) == len(answers)
    assert found.error >= abs(found.confidence - found.accuracy) - 1e-12
    assert all(m / NUM_BINS - 1e-9 <= one.confidence <= (m + 1) / NUM_BINS + 1e-9
               for m, one in enumerate(found.bins) if one.num_answers)  # fmt: skip


@given(ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_the_answers_does_not_matter(answers: list[tuple[float, bool]], random: object) -> None:
    shuffled = list(answers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert found_of(shuffled).error == pytest.approx(found_of(answers).error, abs=1e-12)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=10))
def test_who_is_right_as_often_as_said_has_no_error(groups: list[tuple[int, int]]) -> None:
    answers = []
    for size, right in groups:
        right = min(right, size)
        answers += [(right / size, place < right) for place in range(size)]
    assert found_of(answers).error == pytest.approx(0, abs=1e-12)


def test_three_answers_by_hand() -> None:
    found = found_of([(0.9, True), (0.9, False), (0.5, True)])
    assert found.error == pytest.approx((2 * 0.4 + 0.5) / 3)
    assert found.confidence == pytest.approx(2.3 / 3)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.bins[13] == Bin(pytest.approx(0.9), 0.5, 2)
    content = json.loads(json.dumps(found.to_json()))
    assert content["bins"][7] == {"confidence": 0.5, "accuracy": 1.0, "num_answers": 1}
    assert content["expected_calibration_error"] == found.error


def test_sure_and_wrong_is_the_worst_there_is() -> None:
    assert found_of([(1.0, False)] * 5).error == 1
    assert found_of([(0.0, False)]).error == 0


def test_confidence_is_the_softmax_of_the_likeliest_and_does_not_overflow() -> None:
    logits: Tensor = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [2.0, 1.0]])
    assert softmax_confidence(logits).tolist() == pytest.approx([0.5, 1.0, 1 / (1 + math.exp(-1))])


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="0 answers"):
        calibration(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
