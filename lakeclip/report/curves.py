"""Curves of a run: one per metric in Lightning's metrics.csv."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Metric → (step, value) in ascending order of steps; over another axis (pairs or time, value).
Curves = dict[str, list[tuple[float, float]]]

#: Metric with the wall-clock time since the start of the run, in seconds.
CLOCK = "train/seconds"


class Axis(NamedTuple):
    """Horizontal axis of a chart.

    Attributes:
        key: identifier in the page's switch and element ids.
        name: label on the switch.
        label: label below the curves.
    """

    key: str
    name: str
    label: str


STEPS = Axis("steps", "steps", "step")
PAIRS = Axis("pairs", "pairs seen", "pairs seen")


def read_curves(file: Path) -> Curves:
    """Read a metrics.csv; a missing file gives no curves, and missing or non-finite values are skipped.

    If a resumed run logged a step twice, the last value counts.
    """
    if not file.is_file():
        return {}
    values: dict[str, dict[float, float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            step = _number(row.get("step"))
            if step is None:
                continue
            for name, text in row.items():
                value = _number(text)
                if name not in (None, "step") and value is not None:
                    values.setdefault(name, {})[int(step)] = value
    return {name: sorted(points.items()) for name, points in values.items()}


def over_time(curves: Curves, unit_seconds: float = 1.0) -> Curves:
    """Convert curves to wall-clock time; empty if the run did not record it.

    The time of a step between two clock readings is interpolated.

    Args:
        unit_seconds: unit of the axis.
    """
    clock = curves.get(CLOCK)
    if not clock:
        return {}
    steps, seconds = np.array(clock).T
    # A clock that was set back would make the curves go backwards.
    units = np.maximum.accumulate(seconds) / unit_seconds
    return {
        name: [(float(np.interp(step, steps, units)), value) for step, value in points]
        for name, points in curves.items()
    }


def over_pairs(curves: Curves, pairs_per_step: float) -> Curves:
    """Convert curves to the number of pairs seen; step 0 ends after the first global batch."""
    return {name: [((step + 1) * pairs_per_step, value) for step, value in points] for name, points in curves.items()}


def time_axis(seconds: float) -> tuple[Axis, float]:
    """Choose the time axis for a run of this length, and return it with its unit in seconds."""
    units = (("hours", 3600.0), ("minutes", 60.0))
    name, unit = next(((name, unit) for name, unit in units if seconds >= 3 * unit), ("seconds", 1.0))
    return Axis("time", "wall-clock", name), unit


def axes_of(curves: Curves) -> list[tuple[Axis, Curves]]:
    """Return a run's curves over every axis that it recorded."""
    views = [(STEPS, curves)]
    if clock := curves.get(CLOCK):
        axis, unit = time_axis(clock[-1][1])
        views.append((axis, over_time(curves, unit)))
    return views


def smooth(points: list[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Compute a centred moving average over `window` points, fewer at the ends."""
    half = window // 2
    around = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [
        (step, math.fsum(value for _, value in near) / len(near))
        for (step, _), near in zip(points, around, strict=True)
    ]


def thin(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Reduce a curve to at most `most` points by averaging neighbours."""
    if len(points) <= most:
        return points
    return [(float(x), float(y)) for x, y in (part.mean(axis=0) for part in np.array_split(np.array(points), most))]


def _number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
