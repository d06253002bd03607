"""The parts of a run: what differs from one to the next, and the lineage as it was."""

from __future__ import annotations

from typing import Any

import pytest

from lakeclip.checkpoints.parts import changes_weights, differences, part_of, parts_of_run
from lakeclip.errors import CheckpointError


def lineage(batch_size: int = 8, *, parts: list[dict[str, Any]] | None = None, **environment: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "data": {"path": "/a", "version": "x@1", "query": None, "rows": 5},
        "config": {"data": {"batch_size": batch_size, "same_by": ()}, "model": "m"},
        "environment": environment,
        **({"parts": parts} if parts is not None else {}),
    }


def test_what_differs_is_named_by_its_path() -> None:
    assert differences(lineage(), lineage()) == {}
    assert differences(lineage(8, torch="1"), lineage(16, torch="2", cuda="3")) == {
        "config.data.batch_size": [8, 16],
        "environment.torch": ["1", "2"],
        "environment.cuda": [None, "3"],
    }


def test_lists_and_tuples_are_alike() -> None:
    other = lineage()
    other["config"]["data"]["same_by"] = []
    assert differences(lineage(), other) == {}


@pytest.mark.parametrize(
    ("name", "does"),
    [
        ("config.data.batch_size", True),
        ("config.data.val_fraction", True),
        ("config.trainer.max_steps", True),
        ("data.version", True),
        ("world_size", True),
        ("data.path", False),
        ("config.data.num_workers", False),
        ("config.trainer.name", False),
        ("config.evaluation.eval_lake", False),
        ("environment.torch", False),
    ],
)
def test_what_changes_weights(name: str, does: bool) -> None:
    assert changes_weights(name) is does


def test_the_lineage_as_it_was_in_each_part() -> None:
    parts = [
        {"step": 0, "changed": {}},
        {"step": 10, "changed": {"config.data.batch_size": [4, 8]}},
        {"step": 20, "changed": {"config.data.batch_size": [8, 16], "data.version": ["x@0", "x@1"]}},
    ]
    whole = lineage(16, parts=parts)
    found = {step: part_of(whole, step) for step in (1, 10, 11, 20, 21, 99)}
    assert [found[step][0]["step"] for step in found] == [0, 0, 10, 10, 20, 20]
    assert [found[step][1]["config"]["data"]["batch_size"] for step in found] == [4, 4, 8, 8, 16, 16]
    assert [found[step][1]["data"]["version"] for step in found] == ["x@0"] * 4 + ["x@1"] * 2
    assert whole["config"]["data"]["batch_size"] == 16, "what was asked is left alone"


@pytest.mark.parametrize("parts", [None, [], [{"step": 7, "changed": {}}]])
def test_an_older_checkpoint_does_not_tell(parts: list[dict[str, Any]] | None) -> None:
    with pytest.raises(CheckpointError, match="does not tell how its run went"):
        parts_of_run(lineage(parts=parts))
