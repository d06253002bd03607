"""Calibration error: against the definition, and properties that hold for any predictions."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lakeclip.evaluation.calibration import NUM_BINS, Bin, Calibration, compute_calibration, softmax_confidence

PREDICTIONS = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60)


def calibrate(predictions: list[tuple[float, bool]]) -> Calibration:
    confidences, correct = zip(*predictions, strict=True)
    return compute_calibration(torch.tensor(confidences, dtype=torch.float64), torch.tensor(correct))


def reference_error(predictions: list[tuple[float, bool]]) -> float:
    """Compute the error as defined by Guo et al. 2017, section 2: bin m covers ((m - 1) / M, m / M]."""
    error = 0.0
    for m in range(1, NUM_BINS + 1):
        members = [pair for pair in predictions if max(1, math.ceil(pair[0] * NUM_BINS)) == m]
        if members:
            confidence, accuracy = (statistics.fmean(column) for column in zip(*members, strict=True))
            error += len(members) / len(predictions) * abs(accuracy - confidence)
    return error


@given(PREDICTIONS)
def test_equals_the_definition(predictions: list[tuple[float, bool]]) -> None:
    result = calibrate(predictions)
    assert result.error == pytest.approx(reference_error(predictions), abs=1e-12)
    assert 0 <= result.error <= 1
    assert len(result.bins) == NUM_BINS
    assert sum(bin_.num_answers for bin_ in result.bins) == len(predictions)
    assert result.error >= abs(result.confidence - result.accuracy) - 1e-12
    assert all(m / NUM_BINS - 1e-9 <= bin_.confidence <= (m + 1) / NUM_BINS + 1e-9
               for m, bin_ in enumerate(result.bins) if bin_.num_answers)  # fmt: skip


@given(PREDICTIONS, st.randoms(use_true_random=False))
def test_order_of_predictions_does_not_matter(predictions: list[tuple[float, bool]], random: object) -> None:
    shuffled = list(predictions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert calibrate(shuffled).error == pytest.approx(calibrate(predictions).error, abs=1e-12)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=10))
def test_calibrated_predictions_have_no_error(groups: list[tuple[int, int]]) -> None:
    predictions = []
    for size, right in groups:
        right = min(right, size)
        predictions += [(right / size, index < right) for index in range(size)]
    assert calibrate(predictions).error == pytest.approx(0, abs=1e-12)


def test_three_predictions_by_hand() -> None:
    result = calibrate([(0.9, True), (0.9, False), (0.5, True)])
    assert result.error == pytest.approx((2 * 0.4 + 0.5) / 3)
    assert result.confidence == pytest.approx(2.3 / 3)
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.bins[13] == Bin(pytest.approx(0.9), 0.5, 2)
    content = json.loads(json.dumps(result.to_json()))
    assert content["bins"][7] == {"confidence": 0.5, "accuracy": 1.0, "num_answers": 1}
    assert content["expected_calibration_error"] == result.error


def test_confident_and_wrong_has_the_largest_error() -> None:
    assert calibrate([(1.0, False)] * 5).error == 1
    assert calibrate([(0.0, False)]).error == 0


def test_softmax_confidence_does_not_overflow() -> None:
    logits: Tensor = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [2.0, 1.0]])
    assert softmax_confidence(logits).tolist() == pytest.approx([0.5, 1.0, 1 / (1 + math.exp(-1))])


def test_no_predictions_are_rejected() -> None:
    with pytest.raises(ValueError, match="0 confidences"):
        compute_calibration(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
