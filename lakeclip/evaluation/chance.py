"""Comparison of a score with guessing: its multiple of chance, its interval, and a verdict in words.

standing = compare_with_chance(0.05, 1 / 20, 20)
print(standing)   # 5.0%, 1.0× chance (5.0%), 95% interval 0.9% to 23.6%: guessing
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lakeclip.evaluation.significance import wilson_interval

Verdict = Literal["guessing", "learning", "below chance", "undecidable"]

#: A loss that ends within this share of ln(batch) has learned nothing.
_STUCK = 0.97
#: Share of the steps at the end over which the loss is averaged.
_LAST_PART = 0.1


@dataclass(frozen=True)
class Standing:
    """A score beside what guessing reaches.

    Attributes:
        share: the score, 0…1.
        chance: the expected score of guessing at random, 0…1.
        num: number of scored samples: images, captions or other queries.
        interval: 95% confidence interval of the score (Wilson 1927).
    """

    share: float
    chance: float
    num: int
    interval: tuple[float, float]

    @property
    def times_chance(self) -> float:
        """The score as a multiple of chance."""
        return self.share / self.chance if self.chance else math.inf

    @property
    def verdict(self) -> Verdict:
        """Verdict on the score.

        - "guessing": chance is within the interval, so the model may know nothing;
        - "learning": the score is above chance;
        - "below chance": it is below, as with mixed-up labels;
        - "undecidable": any model scores 100%, as with R@10 among ten candidates.
        """
        if self.chance >= 1:
            return "undecidable"
        low, high = self.interval
        if low > self.chance:
            return "learning"
        return "guessing" if high >= self.chance else "below chance"

    @property
    def is_guessing(self) -> bool:
        """True unless the score is above chance."""
        return self.verdict != "learning"

    def __str__(self) -> str:
        if self.verdict == "undecidable":
            return f"{self.share:.1%}, as any model (chance 100%)"
        low, high = self.interval
        return (
            f"{self.share:.1%}, {self.times_chance:.1f}× chance ({self.chance:.1%}), "
            f"95% interval {low:.1%} to {high:.1%}: {self.verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "score": self.share,
            "chance": self.chance,
            "num": self.num,
            "interval_95": list(self.interval),
            "times_chance": self.times_chance if self.chance else None,
            "verdict": self.verdict,
        }


def compare_with_chance(share: float, chance: float, num: int) -> Standing:
    """Compare a score with guessing at random.

    Args:
        share: share of the samples that are right, 0…1.
        chance: expected share of guessing, 0…1.
        num: number of samples.

    Raises:
        ValueError: there are no samples.
    """
    if num < 1:
        raise ValueError(f"{num} samples")
    return Standing(share, min(1.0, chance), num, wilson_interval(share, num))


def recall_chance(k: int, num_candidates: int, num_positives: int = 1) -> float:
    """Return the probability that one of the positives is among k random candidates.

    Args:
        k: number of candidates that are looked at; 1 or more.
        num_candidates, num_positives: of a query.
    """
    if k >= num_candidates or num_positives + k > num_candidates:
        return 1.0 if num_positives else 0.0
    negatives = num_candidates - num_positives
    miss = 1.0
    for drawn in range(k):
        miss *= (negatives - drawn) / (num_candidates - drawn)
    return 1 - miss


@dataclass(frozen=True)
class StuckLoss:
    """A softmax loss that ended where guessing is.

    Attributes:
        last: mean loss of the last tenth of the steps.
        expected: loss of guessing, the logarithm of the global batch.
        global_batch: pairs that are compared.
    """

    last: float
    expected: float
    global_batch: int

    def __str__(self) -> str:
        if self.last < 1e-3:
            return f"its loss is {self.last:.2g}: there was nothing to learn"
        return f"its loss stayed at {self.last:.2f}, where guessing is (ln {self.global_batch:,} = {self.expected:.2f})"


def find_stuck_loss(losses: Sequence[float], global_batch: int) -> StuckLoss | None:
    """Return the loss of a run that ended at ln(batch) or began and ended at 0; None for a run that learned.

    Args:
        losses: the softmax losses of the run in order, without label smoothing.
        global_batch: pairs that a batch compares.
    """
    if not losses or global_batch < 2:
        return None
    part = losses[-max(1, round(_LAST_PART * len(losses))) :]
    stuck = StuckLoss(math.fsum(part) / len(part), math.log(global_batch), global_batch)
    began_at_zero = max(losses[: len(part)]) < 1e-3
    return stuck if began_at_zero or stuck.last >= _STUCK * stuck.expected else None
