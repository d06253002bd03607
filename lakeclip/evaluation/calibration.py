"""How far a classifier's confidence can be believed: expected calibration error (Guo et al. 2017, arXiv 1706.04599).

The confidence of an answer is its probability in the softmax over all classes. The answers are put into bins of equal
width by it; the error is the difference between mean confidence and accuracy in a bin, averaged over the bins by how
many answers each has.
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
    """Answers given with about the same confidence: its mean, the share of them that is right, how many there are."""

    confidence: float
    accuracy: float
    num_answers: int


@dataclass(frozen=True)
class Calibration:
    """What a classifier says of its own answers, and what they are.

    Attributes:
        error: expected calibration error, 0…1.
        confidence: mean over all answers.
        accuracy: share of them that is right.
        bins: from least confidence to most; an empty one has zeros.
    """

    error: float
    confidence: float
    accuracy: float
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written by `lakeclip evaluate zeroshot --json`."""
        return {
            "expected_calibration_error": self.error,
            "mean_confidence": self.confidence,
            "accuracy": self.accuracy,
            "bins": [one._asdict() for one in self.bins],
        }


def calibration(confidence: Float[Tensor, " answers"], is_right: Bool[Tensor, " answers"]) -> Calibration:
    """Compare what answers were said to be with what they are.

    Args:
        confidence: of each answer, 0…1. What lies on the border of two bins goes to the lower one.

    Raises:
        ValueError: no answers, or as many truths as there are not.
    """
    said, right = confidence.double().cpu().numpy(), is_right.double().cpu().numpy()
    if len(said) == 0 or len(said) != len(right):
        raise ValueError(f"{len(said)} answers and {len(right)} truths")
    number = np.clip(np.ceil(said * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(number, minlength=NUM_BINS)
    said_in, right_in = (np.bincount(number, values, NUM_BINS) for values in (said, right))
    return Calibration(
        error=float(np.abs(said_in - right_in).sum() / len(said)),
        confidence=float(said.mean()),
        accuracy=float(right.mean()),
        bins=tuple(
            Bin(said_sum / count, right_sum / count, count) if count else Bin(0.0, 0.0, 0)
            for said_sum, right_sum, count in zip(said_in.tolist(), right_in.tolist(), counts.tolist(), strict=True)
        ),
    )


def softmax_confidence(logits: Float[Tensor, "answers classes"]) -> Float[Tensor, " answers"]:
    """The probability of the likeliest class. No sum of exponentials of large logits overflows."""
    return torch.exp(logits.amax(dim=1) - logits.logsumexp(dim=1))
