"""The parts of a run, as its lineage lists them: where each began, and what had changed by then.

    step, epoch, position, samples_seen   where it began (`data/progress.py`)
    batch_size, world_size, batches_per_step, max_epochs, max_steps   how it went on from there
    changed   name → [before, from now on], of settings, data, code and environment; none in the first part

A run that goes on with everything as it was makes no new part. Names are paths in the lineage, such as
`config.data.batch_size`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lakeclip.errors import CheckpointError

#: What is compared from one part to the next.
_COMPARED = ("config", "code", "environment")
_OF_DATA = ("path", "version", "query", "rows", "plan")
_MISSING = object()

#: Settings that do not change the weights that a run reaches.
WITHOUT_EFFECT = (
    "config.evaluation.",
    "config.data.max_val_rows",
    "config.data.mark_unusable",
    *(f"config.trainer.{name}" for name in ("runs", "name", "track", "val_every_steps", "save_", "keep_")),
)
_OF_THE_LOADER = "config.data.num_workers"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What differs between two lineages, by its path: [before, now]; None for what one does not have."""
    first, second = _compared(before), _compared(now)
    return {
        name: [first.get(name), second.get(name)]
        for name in {**first, **second}
        if first.get(name, _MISSING) != second.get(name, _MISSING)
    }


def changes_weights(name: str) -> bool:
    """Whether something by this path, when it differs, makes other weights: settings and data, not code and machine."""
    if name.startswith(("code.", "environment.")) or name == "data.path":
        return False
    return name != _OF_THE_LOADER and not name.startswith(WITHOUT_EFFECT)


def part_of(lineage: Mapping[str, Any], step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of a run that took a step, and the lineage as it was in it.

    Args:
        step: counted from 1.

    Raises:
        CheckpointError: the lineage is of an older lakeclip, which did not list parts.
    """
    parts = parts_of_run(lineage)
    number = max(index for index, part in enumerate(parts) if part["step"] < max(step, 1))
    then = copy.deepcopy(dict(lineage))
    for part in reversed(parts[number + 1 :]):
        for name, (before, _) in part["changed"].items():
            *path, last = name.split(".")
            place: Any = then
            for word in path:
                place = place.setdefault(word, {})
            place[last] = before
    return parts[number], then


def parts_of_run(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All parts, the first one first.

    Raises:
        CheckpointError: as `part_of`.
    """
    parts = lineage.get("parts")
    if not parts or parts[0]["step"]:
        raise CheckpointError(
            "the checkpoint does not tell how its run went through its data",
            found=f"no parts of the run, written by lakeclip {lineage.get('version', 'unknown')}",
            allowed="a checkpoint of `lakeclip train` or `lakeclip finetune` that was written since they are kept",
            next_step="go on with the run (--resume), or train again",
        )
    return list(parts)


def _compared(lineage: Mapping[str, Any]) -> dict[str, Any]:
    data = {name: lineage["data"].get(name) for name in _OF_DATA}
    found = {"data": data, **{name: lineage.get(name, {}) for name in _COMPARED}}
    return _flat(found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found
