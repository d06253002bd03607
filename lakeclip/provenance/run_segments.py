"""Compare and list the segments of a run. A segment starts when a run is resumed with a change.

The lineage stores the segments as "parts", a list of dicts with

    step, epoch, position, samples_seen   the position at which the segment began (`data/position.py`)
    batch_size, world_size, batches_per_step, max_epochs, max_steps   its batches and its end
    total_steps, warmup_steps   schedule of its learning rate; missing from older checkpoints
    changed   name → [before, after] of settings, data, code and environment; empty in the first segment

A resume without changes starts no segment. Names are paths in the lineage, such as `config.data.batch_size`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lakeclip.errors import CheckpointError

#: Lineage entries that are compared between segments; of the data only these fields.
_COMPARED = ("config", "code", "environment")
_COMPARED_DATA = ("path", "version", "query", "rows", "plan")
_MISSING = object()

#: Prefixes of settings that do not affect the weights.
WITHOUT_EFFECT = (
    "config.evaluation.",
    "config.data.max_val_rows",
    "config.data.mark_unusable",
    *(f"config.trainer.{name}" for name in ("runs", "name", "track", "val_every_steps", "save_", "keep_")),
)
_NUM_WORKERS = "config.data.num_workers"


def lineage_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the differences between two lineages as path → [before, now]; None stands for a missing entry."""
    first, second = _compared_entries(before), _compared_entries(now)
    return {
        name: [first.get(name), second.get(name)]
        for name in {**first, **second}
        if first.get(name, _MISSING) != second.get(name, _MISSING)
    }


def affects_weights(name: str) -> bool:
    """Return True if a change of this path affects the weights.

    Most settings and data do. Code and environment are assumed not to.
    """
    if name.startswith(("code.", "environment.")) or name == "data.path":
        return False
    return name != _NUM_WORKERS and not name.startswith(WITHOUT_EFFECT)


def segment_at_step(lineage: Mapping[str, Any], step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the segment of a run that took a step, and the lineage as it was in that segment.

    Args:
        step: counted from 1.

    Raises:
        CheckpointError: an older version of lakeclip, which recorded no segments, wrote the lineage.
    """
    segments = list_segments(lineage)
    number = max(index for index, segment in enumerate(segments) if segment["step"] < max(step, 1))
    earlier = copy.deepcopy(dict(lineage))
    for segment in reversed(segments[number + 1 :]):
        for name, (before, _) in segment["changed"].items():
            *parents, key = name.split(".")
            entry: Any = earlier
            for parent in parents:
                entry = entry.setdefault(parent, {})
            entry[key] = before
    return segments[number], earlier


def list_segments(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all segments of a run, in order.

    Raises:
        CheckpointError: as in `segment_at_step`.
    """
    segments = lineage.get("parts")
    if not segments or segments[0]["step"]:
        raise CheckpointError(
            "the checkpoint does not record its run's path through the data",
            found=f"no segments of the run; written by lakeclip {lineage.get('version', 'unknown')}",
            allowed="a checkpoint of `lakeclip train` or `lakeclip finetune` by a version that records segments",
            next_step="resume the run (--resume), or train again",
        )
    return list(segments)


def _compared_entries(lineage: Mapping[str, Any]) -> dict[str, Any]:
    data = {name: lineage["data"].get(name) for name in _COMPARED_DATA}
    return _flatten({"data": data, **{name: lineage.get(name, {}) for name in _COMPARED}})


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
