"""What fine-tuning cost of what was known, and what the weights between its start and its end have of both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Where a run keeps it.
FILE_NAME = "forgetting.json"


@dataclass(frozen=True)
class Mix:
    """(1 - share) of the weights at the start and share of those at the end.

    Attributes:
        new: R@1 on the validation rows of the new data (0…1), the mean of both directions.
        kept: zero-shot top-1 (0…1) on what is not to be forgotten.
    """

    share: float
    new: float
    kept: float


@dataclass(frozen=True)
class Forgetting:
    """A sweep over mixes, from none to all of the new weights.

    Attributes:
        kept_lake: the test of what is not to be forgotten.
        before: its score before training.
        mixes: by share, ascending.
    """

    kept_lake: str
    before: float
    mixes: tuple[Mix, ...]

    @property
    def best(self) -> Mix:
        """The mix with the most of both: each score as a share of the sweep's best; of equals, the newest."""
        new, kept = (max(getattr(mix, name) for mix in self.mixes) or 1.0 for name in ("new", "kept"))
        return max(self.mixes, key=lambda mix: (mix.new / new + mix.kept / kept, mix.share))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
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
            f"{'new weights':>12}{'new data, R@1':>16}{'kept, top-1':>14}\n"
            + "\n".join(
                f"{mix.share:>12.0%}{mix.new:>16.1%}{mix.kept:>14.1%}{'  best of both' if mix is best else ''}"
                for mix in self.mixes
            )
            + f"\nkept: {self.before:.1%} before, {end.kept:.1%} after, {best.kept:.1%} in checkpoints/mixed.ckpt, "
            f"which has {best.share:.0%} of the new weights"
        )


def read_forgetting(run: Path) -> Forgetting | None:
    """What a run kept, or None where it had no such test."""
    path = run / FILE_NAME
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return Forgetting(content["kept_lake"], content["before"], tuple(Mix(*mix) for mix in content["mixes"]))
