"""Summary of a run's data: rows in the lake, rows selected and trained on, unusable rows, and skipped steps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakeclip.checkpoints.folder import SKIPPED
from lakeclip.data.quarantine import QUARANTINE, read_quarantine
from lakeclip.lake.mixture import SEPARATOR

_NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Unusable:
    """Unusable rows with the same reason; numbers in the reason are replaced by "…", as they differ between rows.

    Attributes:
        examples: the first row numbers, with the lake if there are several.
    """

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class SkippedStep:
    """A training step that was skipped, and the reason."""

    step: int
    fault: str


@dataclass(frozen=True)
class DataSummary:
    """Counts of a run's rows; None for what an old checkpoint does not record.

    Attributes:
        lakes: path and version of each lake; empty for the user's own dataloader.
        query: query on all lakes.
        total_rows: rows in the lakes, before the query.
        kept_rows: rows that the query selects.
        train_rows: those that were trained on.
        val_rows: rows validated on, held out or from the `val_lake`.
        samples_seen: pairs trained on, repetitions included.
        unusable: groups of unusable rows, the most common reason first.
        skipped_steps: in ascending order.
    """

    lakes: tuple[tuple[str, str], ...]
    query: str | None
    total_rows: int | None
    kept_rows: int
    train_rows: int | None
    val_rows: int | None
    val_lake: str | None
    samples_seen: int
    unusable: tuple[Unusable, ...] = ()
    skipped_steps: tuple[SkippedStep, ...] = ()

    @property
    def num_unusable(self) -> int:
        """Number of unusable rows."""
        return sum(group.count for group in self.unusable)

    @property
    def held_out_rows(self) -> int | None:
        """Number of rows that the query selects and that were not trained on."""
        return self.kept_rows - self.train_rows if self.train_rows is not None else None

    @property
    def passes(self) -> float | None:
        """Mean number of times that each row was seen; None if the number of rows is unknown."""
        rows = self.train_rows or self.kept_rows
        return self.samples_seen / rows if rows else None


def read_data_summary(run: Path, lineage: Mapping[str, Any]) -> DataSummary:
    """Read the data summary of a run from its checkpoint's lineage and the lists in its folder."""
    data, loading = lineage["data"], lineage["config"].get("data", {})
    paths, versions = (str(data[name]).split(SEPARATOR) if data[name] else [] for name in ("path", "version"))
    versions += [""] * (len(paths) - len(versions))
    return DataSummary(
        lakes=tuple(zip(paths, versions, strict=False)),
        query=data["query"],
        total_rows=data.get("total_rows"),
        kept_rows=data["rows"],
        train_rows=data.get("train_rows"),
        val_rows=data.get("val_rows"),
        val_lake=loading.get("val_lake"),
        samples_seen=lineage["progress"]["samples_seen"],
        unusable=_unusable(run / QUARANTINE),
        skipped_steps=_left_out(run / SKIPPED),
    )


def _unusable(file: Path) -> tuple[Unusable, ...]:
    quarantine = read_quarantine(file)
    rows_of: dict[str, list[str]] = {}
    for lake, reasons in quarantine.items():
        for row, reason in sorted(reasons.items()):
            name = f"{row:,} of {lake}" if len(quarantine) > 1 else f"{row:,}"
            rows_of.setdefault(re.sub(r"\d+(\.\d+)?", "…", reason), []).append(name)
    ordered = sorted(rows_of.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Unusable(reason, len(names), tuple(names[:_NUM_EXAMPLES])) for reason, names in ordered)


def _left_out(file: Path) -> tuple[SkippedStep, ...]:
    if not file.is_file():
        return ()
    steps: dict[int, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        # A resumed run may have skipped the same step again.
        steps[entry["step"]] = entry["fault"]
    return tuple(SkippedStep(step, fault) for step, fault in sorted(steps.items()))
