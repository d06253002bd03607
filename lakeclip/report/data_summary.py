"""What became of the rows: what there was, what a query kept, what could not be used, which steps were left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakeclip.data.quarantine import QUARANTINE, read_quarantine
from lakeclip.lake.several import SEPARATOR

#: Where a run lists the steps that it left out: a line of JSON each.
SKIPPED = "skipped.jsonl"

_EXAMPLES = 5


@dataclass(frozen=True)
class Unusable:
    """Rows that could not be used for one reason; numbers in it stand as "…", as they differ from row to row.

    Attributes:
        examples: the first of them, by their number, and the lake where there are several.
    """

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """A step that was not taken, and why."""

    step: int
    fault: str


@dataclass(frozen=True)
class DataAccount:
    """Rows in, rows out. What an old checkpoint does not tell is None.

    Attributes:
        lakes: path and version of each; none for a dataloader of the user's own.
        query: that all of them were asked.
        total_rows: in the lakes, before the query.
        kept_rows: by the query.
        train_rows: of these, trained on.
        val_rows: validated on: of those held out, or, where there is one, of the `val_lake`.
        samples_seen: pairs trained on, repetitions counted.
        unusable: met in training and validation, the commonest reason first.
        left_out: steps, in their order.
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
    left_out: tuple[LeftOut, ...] = ()

    @property
    def num_unusable(self) -> int:
        """Rows that could not be used, for any reason."""
        return sum(one.count for one in self.unusable)

    @property
    def held_out_rows(self) -> int | None:
        """Rows that the query kept and that were not trained on."""
        return self.kept_rows - self.train_rows if self.train_rows is not None else None

    @property
    def passes(self) -> float | None:
        """How often each row was seen, on average; None where the rows are not known."""
        rows = self.train_rows or self.kept_rows
        return self.samples_seen / rows if rows else None


def read_account(run: Path, lineage: Mapping[str, Any]) -> DataAccount:
    """The account of a run, from its checkpoint's lineage and the lists in its folder."""
    data, loading = lineage["data"], lineage["config"].get("data", {})
    paths, versions = (str(data[name]).split(SEPARATOR) if data[name] else [] for name in ("path", "version"))
    versions += [""] * (len(paths) - len(versions))
    return DataAccount(
        lakes=tuple(zip(paths, versions, strict=False)),
        query=data["query"],
        total_rows=data.get("total_rows"),
        kept_rows=data["rows"],
        train_rows=data.get("train_rows"),
        val_rows=data.get("val_rows"),
        val_lake=loading.get("val_lake"),
        samples_seen=lineage["progress"]["samples_seen"],
        unusable=_unusable(run / QUARANTINE),
        left_out=_left_out(run / SKIPPED),
    )


def _unusable(file: Path) -> tuple[Unusable, ...]:
    found = read_quarantine(file)
    rows: dict[str, list[str]] = {}
    for lake, reasons in found.items():
        for row, reason in sorted(reasons.items()):
            where = f"{row:,} of {lake}" if len(found) > 1 else f"{row:,}"
            rows.setdefault(re.sub(r"\d+(\.\d+)?", "…", reason), []).append(where)
    ordered = sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Unusable(reason, len(where), tuple(where[:_EXAMPLES])) for reason, where in ordered)


def _left_out(file: Path) -> tuple[LeftOut, ...]:
    if not file.is_file():
        return ()
    steps: dict[int, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        # A step that a resumed run came to again is one step.
        steps[entry["step"]] = entry["fault"]
    return tuple(LeftOut(step, fault) for step, fault in sorted(steps.items()))
