"""Statistical significance of a difference between two models on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

_Z = 1.96
#: Level of significance.
ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """Difference in accuracy between two models on the same samples.

    Attributes:
        share: accuracy of the second model minus that of the first, -1…1.
        interval: its 95% confidence interval.
        p_value: probability of a difference at least this large between equally good models.
        only_first, only_second: samples that only one of the models gets right.
    """

    share: float
    interval: tuple[float, float]
    p_value: float
    only_first: int
    only_second: int

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """Verdict on the second model, as written to JSON; "not told apart" if the difference is not significant."""
        if self.p_value >= ALPHA or self.share == 0:
            return "not told apart"
        return "better" if self.share > 0 else "worse"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "difference": self.share,
            "interval_95": list(self.interval),
            "p_value": self.p_value,
            "only_first_right": self.only_first,
            "only_this_right": self.only_second,
            "verdict": self.verdict,
        }


def paired_difference(first: Bool[np.ndarray, " samples"], second: Bool[np.ndarray, " samples"]) -> Difference:
    """Compare which samples two models get right.

    The p-value is that of McNemar's exact test (1947): of the samples that only one model gets right, equally good
    models get half each. The interval is that of Agresti and Min (2005), which also holds for few samples: it adds half
    a sample to each of the four cells.

    Raises:
        ValueError: the numbers of samples differ, or there are none.
    """
    from scipy.stats import binomtest

    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} samples")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    num_discordant = only_first + only_second
    p_value = float(binomtest(only_second, num_discordant, 0.5).pvalue) if num_discordant else 1.0
    num = len(first) + 2
    centre = (only_second - only_first) / num
    half = _Z * math.sqrt((num_discordant + 1) / num - centre**2) / math.sqrt(num)
    interval = (max(-1.0, centre - half), min(1.0, centre + half))
    return Difference((only_second - only_first) / len(first), interval, p_value, only_first, only_second)


def holm_adjust(differences: Sequence[Difference]) -> list[Difference]:
    """Adjust the p-values for the number of comparisons (Holm 1979)."""
    order = sorted(range(len(differences)), key=lambda index: differences[index].p_value)
    adjusted, highest = list(differences), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, differences[index].p_value * (len(differences) - rank)))
        adjusted[index] = replace(differences[index], p_value=highest)
    return adjusted


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share of independent samples (Wilson 1927).

    Args:
        share: 0…1; rounded to a whole number of samples.
        num: number of samples.
    """
    from scipy.stats import binomtest

    interval = binomtest(round(share * num), num).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
