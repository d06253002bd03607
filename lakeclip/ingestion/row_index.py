"""What a lake holds already: an ingest that was cut short goes on, one that is repeated adds only what is new.

A row is named for good by its part (a tar, a table, a folder) and its key within that. What has been committed is read
back from the rows themselves; there is no second book that a crash could leave behind or ahead of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lakeclip.lake.query import count_values, quote
from lakeclip.lake.schema import COLUMNS, SOURCE, clean_text
from lakeclip.lake.sources.base import Around, Rejected, Sample, Source

#: Key in the dataset's metadata.
_STATE = "lakeclip.ingest"
_READ_TO_THE_END = "; read to the end: "
_BLOCK = 100_000


class State(NamedTuple):
    """How the last ingest into a lake ended, or that it has not.

    Attributes:
        complete: everything that it was to read has been read.
        sources: what that was.
    """

    complete: bool
    sources: list[str]


def read_state(dataset: Any) -> State | None:
    """The state of a lake's last ingest; None where there has been none."""
    if _STATE not in dataset.metadata.keys():  # noqa: SIM118 Deep Lake's metadata is no dictionary
        # Stopped between the making of the lake and its first note.
        ours = {column.name for column in dataset.schema.columns} == {*COLUMNS, SOURCE}
        return State(False, []) if ours and not len(dataset) else None
    stored = json.loads(dataset.metadata[_STATE])
    return State(stored["complete"], stored["sources"])


def write_state(dataset: Any, sources: Sequence[Source], *, complete: bool) -> None:
    """Note what an ingest reads, and whether it is through. Takes effect at once, beside the versions."""
    dataset.metadata[_STATE] = json.dumps({"complete": complete, "sources": short_names(sources)})
    dataset.commit()


def short_names(sources: Sequence[Source]) -> list[str]:
    """What the sources are called, without the folders of the machine they were on."""
    pieces = [source.name.split(" … ") for source in sources]
    return [" … ".join(os.path.basename(path.rstrip("/")) for path in paths) for paths in pieces]


def commit_message(first: int, stop: int, parts: Sequence[str], whole: Sequence[tuple[str, int]]) -> str:
    """What a commit says of its rows: where they are from, and which parts (with their stamps) end with them."""
    named = parts if len(parts) <= 4 else [*parts[:2], "…", parts[-1]]
    message = f"rows {first}-{stop - 1}" if stop > first else "no rows"
    message += f" from {', '.join(named)}" if named else ""
    return message + (_READ_TO_THE_END + json.dumps(whole) if whole else "")


def whole_parts(dataset: Any) -> set[tuple[str, int]]:
    """Parts that were read to their end, and their stamps then, by the commits' messages."""
    found: set[tuple[str, int]] = set()
    for version in dataset.history:
        if match := re.search(re.escape(_READ_TO_THE_END) + r"(\[.*\])$", version.message or ""):
            found.update((part, stamp) for part, stamp in json.loads(match[1]))
    return found


class Ledger:
    """The names of the rows of a lake as it was when this was made. Holds one part's in memory, 13 bytes a row."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._counts = Counter(count_values(dataset, SOURCE) if len(dataset) else {})
        self._part: str | None = None
        self._names = np.empty(0, np.uint64)
        self._crc32 = np.empty(0, np.uint32)
        self._taken = np.empty(0, np.bool_)

    def find(self, part: str, sample: Sample) -> Literal["new", "known", "changed"]:
        """Whether a sample is in the lake. Each of several rows of one name is found once.

        Returns:
            "changed" where a row of its name is there with another image.
        """
        part = clean_text(part)
        if not self._counts[part]:
            return "new"
        if part != self._part:
            self._load(part)
        name = _hash(clean_text(sample.key))
        first = np.searchsorted(self._names, name, "left")
        stop = np.searchsorted(self._names, name, "right")
        free = np.flatnonzero(~self._taken[first:stop])
        if not len(free):
            return "new"
        crc32 = zlib.crc32(sample.image)
        # What an address gives may be another picture each time, or none.
        same = free[(self._crc32[first + free] == crc32)] if sample.image and not sample.url else free
        if not len(same):
            return "changed"
        self._taken[first + same[0]] = True
        return "known"

    def _load(self, part: str) -> None:
        rows = self._rows_of(part)
        names, sums = np.empty(len(rows), np.uint64), np.empty(len(rows), np.uint32)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            keys = _values(self._dataset, "key", block)
            names[start : start + len(block)] = [_hash(key or "") for key in keys]
            sums[start : start + len(block)] = np.asarray(_values(self._dataset, "crc32", block), np.uint32)
        order = np.argsort(names, kind="stable")
        self._part, self._names, self._crc32 = part, names[order], sums[order]
        self._taken = np.zeros(len(rows), np.bool_)

    def _rows_of(self, part: str) -> NDArray[np.int64]:
        clause = f"{SOURCE} == {quote(part)}"
        view = self._dataset.query(f"select row from (select row_number() as row, *) where {clause}")  # noqa: S608
        return np.asarray(view["row"][:], np.int64).reshape(-1)


class Fresh(Around):
    """Of a source, what a lake does not hold yet (a `Source`).

    Args:
        source: what is read.
        ledger: what the lake holds.

    Attributes:
        known: how many samples were passed over, for they are in the lake.
    """

    def __init__(self, source: Source, ledger: Ledger) -> None:
        super().__init__(source)
        self._ledger = ledger
        self.known = 0

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for item in self._source:
            if isinstance(item, Rejected):
                yield item
                continue
            found = self._ledger.find(self.part, item)
            if found == "new":
                yield item
            elif found == "known":
                self.known += 1
            else:
                yield Rejected(item.key, "changed since it was ingested: the row stays as it was")


def _hash(key: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "little"))


def _values(dataset: Any, column: str, rows: NDArray[np.int64]) -> list[Any]:
    """Values of increasing rows: a slice where they lie close together, for a list costs more."""
    first, stop = int(rows[0]), int(rows[-1]) + 1
    if stop - first <= 2 * len(rows):
        values = dataset[column][first:stop]
        return [values[place] for place in (rows - first).tolist()]
    return list(dataset[column][rows.tolist()])
