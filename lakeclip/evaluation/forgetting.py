"""Forgetting by fine-tuning: scores on old and new data for weights interpolated between start and end (WiSE-FT)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: File in a run's folder.
FILE_NAME = "forgetting.json"


@dataclass(frozen=True)
class InterpolationPoint:
    """(1 - share) of the weights at the start and share of those at the end.

    Attributes:
        new: R@1 on the validation rows of the new data (0…1), the mean of both directions.
        kept: zero-shot top-1 (0…1) on the data to keep.
    """

    share: float
    new: float
    kept: float


@dataclass(frozen=True)
class Forgetting:
    """A sweep over mixes, from none to all of the new weights.

    Attributes:
        kept_lake: lake of the data to keep.
        before: zero-shot top-1 on it before training.
        mixes: in ascending order of the share.
    """

    kept_lake: str
    before: float
    mixes: tuple[InterpolationPoint, ...]

    @property
    def best(self) -> InterpolationPoint:
        """The mix with the most of both: each score as a share of the sweep's best; of equals, the newest."""
        new, kept = (max(getattr(mix, name) for mix in self.mixes) or 1.0 for name in ("new", "kept"))
        return max(self.mixes, key=lambda mix: (mix.new / new + mix.kept / kept, mix.share))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kept_lake": self.kept_lake,
            "before": self.before,
            "best": self.best.share,
            "columns": ["share", "new_recall_at_1", "kept_top1"],
            "mixes": [[mix.share, mix.new, mix.kept] for mix in self.mixes],
        }

    def __str__(self) -> str:
        end, best = self.mixes[-1], self.best
        return (
            f"{'new weights':>12}{'new data, R@1':>16}{'data to keep, top-1':>22}\n"
            + "\n".join(
                f"{mix.share:>12.0%}{mix.new:>16.1%}{mix.kept:>22.1%}{'  best' if mix is best else ''}"
                for mix in self.mixes
            )
            + f"\ndata to keep: {self.before:.1%} before, {end.kept:.1%} after, {best.kept:.1%} in "
            f"checkpoints/mixed.ckpt ({best.share:.0%} new weights)"
        )


def read_forgetting(run: Path) -> Forgetting | None:
    """Read the sweep of a run; None if it has none."""
    path = run / FILE_NAME
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return Forgetting(
        content["kept_lake"], content["before"], tuple(InterpolationPoint(*mix) for mix in content["mixes"])
    )
