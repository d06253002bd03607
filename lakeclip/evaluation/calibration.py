"""Calibration of a classifier's confidence: expected calibration error (Guo et al. 2017, arXiv 1706.04599).

The confidence of a prediction is its probability in the softmax over all classes. Predictions are grouped by confidence
into bins of equal width. The error is the difference between mean confidence and accuracy in a bin, averaged over the
bins and weighted by their numbers of predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: As in the paper's experiments.
NUM_BINS = 15


class Bin(NamedTuple):
    """Predictions of similar confidence: their mean confidence, their accuracy, and their number."""

    confidence: float
    accuracy: float
    num_answers: int


@dataclass(frozen=True)
class Calibration:
    """Confidence of a classifier compared with its accuracy.

    Attributes:
        error: expected calibration error, 0…1.
        confidence: mean over all predictions.
        accuracy: share of correct predictions.
        bins: in ascending order of confidence; an empty bin holds zeros.
    """

    error: float
    confidence: float
    accuracy: float
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as written by `lakeclip evaluate zeroshot --json`."""
        return {
            "expected_calibration_error": self.error,
            "mean_confidence": self.confidence,
            "accuracy": self.accuracy,
            "bins": [bin_._asdict() for bin_ in self.bins],
        }


def compute_calibration(
    confidence: Float[Tensor, " predictions"], is_correct: Bool[Tensor, " predictions"]
) -> Calibration:
    """Compare the confidence of predictions with their accuracy.

    Args:
        confidence: of each prediction, 0…1. A value on the edge of two bins belongs to the lower one.

    Raises:
        ValueError: there are no predictions, or the lengths differ.
    """
    confidences, correct = confidence.double().cpu().numpy(), is_correct.double().cpu().numpy()
    num = len(confidences)
    if num == 0 or num != len(correct):
        raise ValueError(f"{num} confidences and {len(correct)} outcomes")
    bin_index = np.clip(np.ceil(confidences * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bin_index, minlength=NUM_BINS)
    confidence_sums, correct_sums = (np.bincount(bin_index, values, NUM_BINS) for values in (confidences, correct))
    return Calibration(
        error=float(np.abs(confidence_sums - correct_sums).sum() / num),
        confidence=float(confidences.mean()),
        accuracy=float(correct.mean()),
        bins=tuple(
            Bin(confidence_sum / count, correct_sum / count, count) if count else Bin(0.0, 0.0, 0)
            for confidence_sum, correct_sum, count in zip(
                confidence_sums.tolist(), correct_sums.tolist(), counts.tolist(), strict=True
            )
        ),
    )


def softmax_confidence(logits: Float[Tensor, "predictions classes"]) -> Float[Tensor, " predictions"]:
    """Return the probability of the most likely class, without overflow for large logits."""
    return torch.exp(logits.amax(dim=1) - logits.logsumexp(dim=1))
