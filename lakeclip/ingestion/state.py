"""State of the ingests into a lake, kept in the lake itself: what they read, from where, and whether they finished.

There is no separate log that a crash could leave inconsistent with the rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lakeclip.ingestion.sources.base import Source
from lakeclip.lake.schema import COLUMNS, SOURCE
from lakeclip.lake.values import clean_text

#: Key in the dataset's metadata.
_STATE = "lakeclip.ingest"
_COMPLETED = "; read to the end: "


class IngestState(NamedTuple):
    """State of the last ingest into a lake.

    Attributes:
        complete: whether the ingest has finished.
        sources: base names of its sources.
        rows_before: number of rows that the lake held when the ingest began; None in lakes of earlier versions.
        paths: part of a source → its whole path or address, of all ingests; parts of earlier versions are missing.
    """

    complete: bool
    sources: list[str]
    rows_before: int | None = None
    paths: Mapping[str, str] = {}


def read_state(dataset: Any) -> IngestState | None:
    """Return the state of a lake's last ingest, or None if there has been none."""
    if _STATE not in dataset.metadata.keys():  # noqa: SIM118 Deep Lake's metadata is not a dictionary
        # An ingest that is interrupted right after creating the lake leaves it empty and without state.
        has_our_schema = {column.name for column in dataset.schema.columns} == {*COLUMNS, SOURCE}
        return IngestState(False, []) if has_our_schema and not len(dataset) else None
    stored = json.loads(dataset.metadata[_STATE])
    return IngestState(stored["complete"], stored["sources"], stored.get("rows_before"), stored.get("paths", {}))


def write_state(dataset: Any, state: IngestState, completed: Sequence[tuple[str, int]] = ()) -> None:
    """Store the state of an ingest in the lake's metadata, and commit.

    Args:
        dataset: the lake.
        state: the state.
        completed: parts that have been read to the end and that no other commit names.
    """
    dataset.metadata[_STATE] = json.dumps(state._asdict())
    dataset.commit(*([commit_message(0, 0, (), completed)] if completed else ()))


def base_names(sources: Sequence[Source]) -> list[str]:
    """Return the names of sources without their folders, which differ between machines."""
    names = [source.name.split(" … ") for source in sources]
    return [" … ".join(os.path.basename(path.rstrip("/")) for path in paths) for paths in names]


def commit_message(first: int, stop: int, parts: Sequence[str], completed: Sequence[tuple[str, int]]) -> str:
    """Compose the message of a commit: its rows, their parts, and the parts that it completes."""
    shown = parts if len(parts) <= 4 else [*parts[:2], "…", parts[-1]]
    message = f"rows {first}-{stop - 1}" if stop > first else "no rows"
    message += f" from {', '.join(shown)}" if shown else ""
    return message + (_COMPLETED + json.dumps(completed) if completed else "")


def completed_parts(dataset: Any) -> set[tuple[str, int]]:
    """Return the parts (name, fingerprint) that have been read to the end, according to the commit messages."""
    parts: set[tuple[str, int]] = set()
    for version in dataset.history:
        if match := re.search(re.escape(_COMPLETED) + r"(\[.*\])$", version.message or ""):
            parts.update((part, fingerprint) for part, fingerprint in json.loads(match[1]))
    return parts


class PartNames:
    """The names of parts in a lake. Each stands for one whole path, so that two data sets never share one.

    Args:
        paths: name → path of the parts that the lake knows.
        num_rows: name → number of rows; names without a path are of earlier versions of lakeclip.
    """

    def __init__(self, paths: Mapping[str, str], num_rows: Mapping[str, int]) -> None:
        self.paths = dict(paths)
        self._num_rows = num_rows
        self._names = {path: name for name, path in self.paths.items()}

    def name_for(self, preferred: str, path: str) -> str:
        """Return the name of a path; an unknown path gets the preferred name, or a longer one if that is taken."""
        if path in self._names:
            return self._names[path]
        name = preferred
        components = [part for part in path.replace(os.sep, "/").split("/") if part]
        for length in range(2, len(components) + 1):
            if not self._is_taken(name):
                break
            name = clean_text("/".join(components[-length:]))
        number = 2
        while self._is_taken(name):
            name = f"{preferred or clean_text(path)} ({number})"
            number += 1
        self.assign(name, path)
        return name

    def is_known(self, path: str) -> bool:
        """Return whether a part of the lake was read from this path."""
        return path in self._names

    def is_gone(self, name: str) -> bool:
        """Return whether nothing is left where a part was read, or whether that place is unknown."""
        path = self.paths.get(name)
        return path is None or ("://" not in path and not os.path.lexists(path))

    def assign(self, name: str, path: str) -> None:
        """Let a name stand for a path; the path's earlier name, which has no rows, is free again."""
        if (old := self._names.pop(path, None)) is not None:
            self.paths.pop(old, None)
        if name in self.paths:
            self._names.pop(self.paths[name], None)
        self.paths[name] = path
        self._names[path] = name

    def _is_taken(self, name: str) -> bool:
        return name in self.paths or bool(self._num_rows.get(name))


def whole_paths(source: Source) -> dict[str, str]:
    """Return the parts of a source, each with its whole path or address."""
    locations = getattr(source, "locations", None)
    if isinstance(locations, dict):
        return {str(part): _whole_path(str(path)) for part, path in locations.items()}
    return {source.part: _whole_path(source.name)}


def _whole_path(name: str) -> str:
    return os.path.abspath(name) if "://" not in name and os.path.exists(name) else name
