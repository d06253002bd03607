"""The account of a run's data, from files as a run leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lakeclip.data.quarantine import Quarantine
from lakeclip.evaluation.pages.account import SKIPPED, LeftOut, Unusable, read_account
from tests.unit.evaluation.scenery import scenery


def lineage(**data: Any) -> dict[str, Any]:
    return {
        "data": {"path": "/a", "version": "1", "query": None, "rows": 100} | data,
        "config": {"data": {"val_lake": None}},
        "progress": {"samples_seen": 250},
    }


def test_unusable_rows_are_counted_by_reason(tmp_path: Path) -> None:
    source = scenery(3)
    # Two processes of a run: each notes what it meets.
    for rows in (range(8), range(4, 9)):
        quarantine = Quarantine()
        quarantine.file = tmp_path / "quarantine.jsonl"
        for row in rows:
            quarantine.add(source, row, f"cut off after {row} bytes" if row < 7 else "no caption")
    account = read_account(tmp_path, lineage())
    assert account.num_unusable == 9
    assert account.unusable == (
        Unusable("cut off after … bytes", 7, ("0", "1", "2", "3", "4")),
        Unusable("no caption", 2, ("7", "8")),
    )


def test_of_several_lakes_an_example_names_its_own(tmp_path: Path) -> None:
    lines = [{"lake": lake, "row": 3, "reason": "no"} for lake in ("/a", "/b")]
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    account = read_account(tmp_path, lineage(path="/a:0.7 + /b:0.3", version="1 + 2"))
    assert account.lakes == (("/a:0.7", "1"), ("/b:0.3", "2"))
    assert account.unusable == (Unusable("no", 2, ("3 of /a", "3 of /b")),)


def test_steps_left_out_twice_are_one(tmp_path: Path) -> None:
    lines = [{"step": step, "fault": f"fault {n}"} for n, step in enumerate((5, 9, 5))]
    (tmp_path / SKIPPED).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_account(tmp_path, lineage()).left_out == (LeftOut(5, "fault 2"), LeftOut(9, "fault 1"))


def test_a_checkpoint_that_knows_more_and_one_that_knows_less(tmp_path: Path) -> None:
    old = read_account(tmp_path, lineage())
    assert (old.total_rows, old.train_rows, old.held_out_rows, old.passes) == (None, None, None, 2.5)
    new = read_account(tmp_path, lineage(total_rows=400, train_rows=80, val_rows=10))
    assert (new.total_rows, new.kept_rows, new.held_out_rows, new.passes) == (400, 100, 20, 3.125)
    own = read_account(tmp_path, lineage(path="", version="", rows=0))
    assert (own.lakes, own.passes) == ((), None)
