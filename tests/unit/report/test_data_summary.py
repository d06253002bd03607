"""Data summary of a run, from its lineage and the lists in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lakeclip.checkpoints.folder import SKIPPED
from lakeclip.data.quarantine import Quarantine
from lakeclip.report.data_summary import SkippedStep, Unusable, read_data_summary
from tests.unit.evaluation.fixtures import scenery


def lineage(**data: Any) -> dict[str, Any]:
    return {
        "data": {"path": "/a", "version": "1", "query": None, "rows": 100} | data,
        "config": {"data": {"val_lake": None}},
        "progress": {"samples_seen": 250},
    }


def test_unusable_rows_are_counted_by_reason(tmp_path: Path) -> None:
    source = scenery(3)
    # Two processes of a run: each lists the rows that it reads.
    for rows in (range(8), range(4, 9)):
        quarantine = Quarantine()
        quarantine.file = tmp_path / "quarantine.jsonl"
        for row in rows:
            quarantine.add(source, row, f"cut off after {row} bytes" if row < 7 else "no caption")
    data = read_data_summary(tmp_path, lineage())
    assert data.num_unusable == 9
    assert data.unusable == (
        Unusable("cut off after … bytes", 7, ("0", "1", "2", "3", "4")),
        Unusable("no caption", 2, ("7", "8")),
    )


def test_examples_from_several_lakes_name_their_lake(tmp_path: Path) -> None:
    lines = [{"lake": lake, "row": 3, "reason": "no"} for lake in ("/a", "/b")]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = read_data_summary(tmp_path, lineage(path="/a:0.7 + /b:0.3", version="1 + 2"))
    assert data.lakes == (("/a:0.7", "1"), ("/b:0.3", "2"))
    assert data.unusable == (Unusable("no", 2, ("3 of /a", "3 of /b")),)


def test_steps_skipped_twice_are_listed_once(tmp_path: Path) -> None:
    lines = [{"step": step, "fault": f"fault {n}"} for n, step in enumerate((5, 9, 5))]
    (tmp_path / SKIPPED).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_data_summary(tmp_path, lineage()).skipped_steps == (
        SkippedStep(5, "fault 2"),
        SkippedStep(9, "fault 1"),
    )


def test_checkpoints_with_and_without_row_counts(tmp_path: Path) -> None:
    old = read_data_summary(tmp_path, lineage())
    assert (old.total_rows, old.train_rows, old.held_out_rows, old.passes) == (None, None, None, 2.5)
    new = read_data_summary(tmp_path, lineage(total_rows=400, train_rows=80, val_rows=10))
    assert (new.total_rows, new.kept_rows, new.held_out_rows, new.passes) == (400, 100, 20, 3.125)
    dataloader = read_data_summary(tmp_path, lineage(path="", version="", rows=0))
    assert (dataloader.lakes, dataloader.passes) == ((), None)
