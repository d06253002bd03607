"""What a run recorded while it trained: Lightning's metrics.csv as one curve per metric."""

from __future__ import annotations

import csv
import math
from pathlib import Path

#: Metric → (step, value) in the order of steps.
Curves = dict[str, list[tuple[int, float]]]


def read_curves(file: Path) -> Curves:
    """Read a metrics.csv. Empty where there is none; values that are missing or not finite are left out.

    A resumed run may have logged some steps twice: the last one counts.
    """
    if not file.is_file():
        return {}
    values: dict[str, dict[int, float]] = {}
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


def smooth(points: list[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """The mean over up to `window` points around each, fewer at the ends."""
    half = window // 2
    around = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [
        (step, math.fsum(value for _, value in near) / len(near))
        for (step, _), near in zip(points, around, strict=True)
    ]


def _number(text: object) -> float | None:
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
