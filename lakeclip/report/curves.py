"""What a run recorded while it trained: Lightning's metrics.csv as one curve per metric."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Metric → (step, value) in the order of steps; or, over another axis, (pairs or time, value).
Curves = dict[str, list[tuple[float, float]]]

#: The wall-clock time of the run so far, in seconds, where the run recorded it.
CLOCK = "train/seconds"


class Axis(NamedTuple):
    """What curves are drawn over.

    Attributes:
        key: in the page's switch, and in the names of its elements.
        name: on the switch.
        label: below the curves.
    """

    key: str
    name: str
    label: str


STEPS = Axis("steps", "steps", "step")
PAIRS = Axis("pairs", "pairs seen", "pairs seen")


def read_curves(file: Path) -> Curves:
    """Read a metrics.csv. Empty where there is none; values that are missing or not finite are left out.

    A resumed run may have logged some steps twice: the last one counts.
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
    """The same curves over wall-clock time, in units of so many seconds. Empty where the run did not record it.

    What was logged between two readings of the clock is put in proportion between them.
    """
    clock = curves.get(CLOCK)
    if not clock:
        return {}
    steps, seconds = np.array(clock).T
    # A clock that was set back would draw loops.
    units = np.maximum.accumulate(seconds) / unit_seconds
    return {
        name: [(float(np.interp(step, steps, units)), value) for step, value in points]
        for name, points in curves.items()
    }


def over_pairs(curves: Curves, pairs_per_step: float) -> Curves:
    """The same curves over the pairs that had been trained on: step 0 ends with the first global batch."""
    return {name: [((step + 1) * pairs_per_step, value) for step, value in points] for name, points in curves.items()}


def time_axis(seconds: float) -> tuple[Axis, float]:
    """The axis that fits a run of this length, and the seconds of its unit."""
    units = (("hours", 3600.0), ("minutes", 60.0))
    name, unit = next(((name, unit) for name, unit in units if seconds >= 3 * unit), ("seconds", 1.0))
    return Axis("time", "wall-clock", name), unit


def axes_of(curves: Curves) -> list[tuple[Axis, Curves]]:
    """A run's curves over every axis that it recorded."""
    views = [(STEPS, curves)]
    if clock := curves.get(CLOCK):
        axis, unit = time_axis(clock[-1][1])
        views.append((axis, over_time(curves, unit)))
    return views


def smooth(points: list[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """The mean over up to `window` points around each, fewer at the ends."""
    half = window // 2
    around = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [
        (step, math.fsum(value for _, value in near) / len(near))
        for (step, _), near in zip(points, around, strict=True)
    ]


def thin(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, each the mean of as many neighbours: what a chart can show of a long run."""
    if len(points) <= most:
        return points
    return [(float(x), float(y)) for x, y in (part.mean(axis=0) for part in np.array_split(np.array(points), most))]


def _number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
