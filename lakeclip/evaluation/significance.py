"""Whether a difference between two models on the same samples is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

_Z = 1.96
#: A difference is called one where chance alone would make it this seldom.
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """How much more often a second model is right than a first, on the same samples.

    Attributes:
        share: second less first, -1…1.
        interval: 95 % confidence interval of it.
        p_value: how often chance would make a difference as large where there is none.
        only_first, only_second: samples that one of them alone gets right. The others say nothing of the difference.
    """

    share: float
    interval: tuple[float, float]
    p_value: float
    only_first: int
    only_second: int

    @property
    def verdict(self) -> str:
        """Of the second model: better, worse, or not told apart."""
        if self.p_value >= LEVEL or self.share == 0:
            return "not told apart"
        return "better" if self.share > 0 else "worse"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
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

    The p-value is of McNemar's exact test (1947): of the samples that one model alone gets right, either should have
    half. The interval is that of Agresti and Min (2005), which holds for few samples too: half a sample is added to
    each of the four kinds.

    Raises:
        ValueError: not the same samples, or none.
    """
    from scipy.stats import binomtest

    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} samples")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    apart = only_first + only_second
    p_value = float(binomtest(only_second, apart, 0.5).pvalue) if apart else 1.0
    num = len(first) + 2
    centre = (only_second - only_first) / num
    half = _Z * math.sqrt((apart + 1) / num - centre**2) / math.sqrt(num)
    interval = (max(-1.0, centre - half), min(1.0, centre + half))
    return Difference((only_second - only_first) / len(first), interval, p_value, only_first, only_second)


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """The same with p-values for several comparisons (Holm 1979): of twenty, one would come out by chance alone."""
    order = sorted(range(len(differences)), key=lambda index: differences[index].p_value)
    adjusted, highest = list(differences), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, differences[index].p_value * (len(differences) - place)))
        adjusted[index] = replace(differences[index], p_value=highest)
    return adjusted


def share_interval(share: float, num: int) -> tuple[float, float]:
    """95 % confidence interval of a share of independent samples (Wilson 1927)."""
    centre = (share + _Z**2 / (2 * num)) / (1 + _Z**2 / num)
    half = _Z / (1 + _Z**2 / num) * math.sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
    return max(0.0, centre - half), min(1.0, centre + half)
