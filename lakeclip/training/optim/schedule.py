"""The learning rate over a run: linear warm-up, then half a cosine down to zero (Radford et al. 2021, section 2.5)."""

from __future__ import annotations

import math

#: The paper's warm-up, for runs of hundreds of thousands of steps.
PAPER_WARMUP_STEPS = 2_000


def warmup_steps(total_steps: int, requested: int | None = None) -> int:
    """How many steps to warm up for: as requested, or the paper's number but at most a tenth of the run."""
    return min(PAPER_WARMUP_STEPS, total_steps // 10) if requested is None else requested


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak learning rate for the given step.

    Args:
        step: the step about to be taken, from 0.
        warmup: number of warm-up steps; the peak is reached on the last of them.
        total: number of steps in the whole run.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
