"""Test the segments of a run: their differences, and the lineage as it was in each."""

from __future__ import annotations

from typing import Any

import pytest

from lakeclip.errors import CheckpointError
from lakeclip.provenance.run_segments import affects_weights, lineage_differences, list_segments, segment_at_step


def make_lineage(
    batch_size: int = 8, *, parts: list[dict[str, Any]] | None = None, **environment: Any
) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "data": {"path": "/a", "version": "x@1", "query": None, "rows": 5},
        "config": {"data": {"batch_size": batch_size, "same_by": ()}, "model": "m"},
        "environment": environment,
        **({"parts": parts} if parts is not None else {}),
    }


def test_differences_are_named_by_their_path() -> None:
    assert lineage_differences(make_lineage(), make_lineage()) == {}
    assert lineage_differences(make_lineage(8, torch="1"), make_lineage(16, torch="2", cuda="3")) == {
        "config.data.batch_size": [8, 16],
        "environment.torch": ["1", "2"],
        "environment.cuda": [None, "3"],
    }


def test_lists_and_tuples_are_equal() -> None:
    other = make_lineage()
    other["config"]["data"]["same_by"] = []
    assert lineage_differences(make_lineage(), other) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_changes_that_affect_weights(name: str, expected: bool) -> None:
    assert affects_weights(name) is expected


def test_the_lineage_as_it_was_in_each_segment() -> None:
    parts = [
        {"step": 0, "changed": {}},
        {"step": 10, "changed": {"config.data.batch_size": [4, 8]}},
        {"step": 20, "changed": {"config.data.batch_size": [8, 16], "data.version": ["x@0", "x@1"]}},
    ]
    lineage = make_lineage(16, parts=parts)
    segments = {step: segment_at_step(lineage, step) for step in (1, 10, 11, 20, 21, 99)}
    assert [segments[step][0]["step"] for step in segments] == [0, 0, 10, 10, 20, 20]
    assert [segments[step][1]["config"]["data"]["batch_size"] for step in segments] == [4, 4, 8, 8, 16, 16]
    assert [segments[step][1]["data"]["version"] for step in segments] == ["x@0"] * 4 + ["x@1"] * 2
    assert lineage["config"]["data"]["batch_size"] == 16, "the argument is unchanged"


@pytest.mark.parametrize("parts", [None, [], [{"step": 7, "changed": {}}]])
def test_an_older_checkpoint_raises(parts: list[dict[str, Any]] | None) -> None:
    with pytest.raises(CheckpointError, match="does not record its run's path"):
        list_segments(make_lineage(parts=parts))
