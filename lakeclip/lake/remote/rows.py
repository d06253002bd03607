"""Rows of a lake behind an address, read through a cache on the local disk that all processes of the machine share.

Deep Lake reads a slice by fetching the whole chunks under it, some 8 MB each, and rows at random one request at a time.
So whole chunks are fetched, each once per machine (`fetch.py`), kept on disk (`cache.py`), and rows taken from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake.remote.cache import Chunk, DamagedChunkError
from lakeclip.lake.remote.fetch import Fetcher

#: Rows to a chunk where Deep Lake does not say where its own end.
FALLBACK_ROWS = 256

_TOGETHER = 32
_MOST_HINTS = 512


class RemoteRows:
    """The values of a remote lake's columns, by row. Picklable.

    Args:
        path: the lake's path.
        version: "ID@VERSION" of the dataset.
        columns: name → type.
        dataset: the opened dataset; only asked where its chunks end, which costs no request.
    """

    def __init__(self, path: str, version: str, columns: dict[str, str], dataset: Any) -> None:
        self._path = path
        self._version = version
        self._encoded = frozenset(name for name, kind in columns.items() if kind in ("image", "link[image]"))
        self._ends = {name: chunk_ends(dataset, name) for name in columns}
        self._fetcher: Fetcher | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_fetcher": None}

    def values(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """Values of a column, in the order of `rows`.

        Raises:
            LakeError: they cannot be fetched.
        """
        ends = self._ends[name]
        numbers = np.searchsorted(ends, rows, side="right")
        needed = np.unique(numbers)
        found: list[Any] = [None] * len(rows)
        if len(needed) > _TOGETHER:
            self._hint(name, needed)
        for start in range(0, len(needed), _TOGETHER):
            together = needed[start : start + _TOGETHER]
            chunks = [_chunk(name, ends, number) for number in together.tolist()]
            self._own_fetcher.take(chunks)  # at once, not one by one
            for number, chunk in zip(together.tolist(), chunks, strict=True):
                places = np.flatnonzero(numbers == number)
                for place, value in zip(places.tolist(), self._take(chunk, rows[places] - chunk.start), strict=True):
                    found[place] = value
        return found

    def prefetch(self, names: Iterable[str], rows: NDArray[np.int64]) -> None:
        """Begin to fetch what these rows of some columns need, and return at once."""
        for name in names:
            self._hint(name, np.unique(np.searchsorted(self._ends[name], rows, side="right")))

    def _hint(self, name: str, numbers: NDArray[np.int64]) -> None:
        self._own_fetcher.hint(_chunk(name, self._ends[name], number) for number in numbers[:_MOST_HINTS].tolist())

    def _take(self, chunk: Chunk, places: NDArray[np.int64]) -> list[Any]:
        for _ in range(3):
            (values,) = self._own_fetcher.take([chunk])
            try:
                return values.take(places.tolist())
            except (DamagedChunkError, OSError):
                self._own_fetcher.forget(chunk)
        raise LakeError(
            f"the cache of the lake at {self._path} cannot be read back",
            found=f"{chunk.file_name} was damaged three times",
            next_step="the disk is failing: set LAKECLIP_CACHE to a folder on another one",
        )

    @property
    def _own_fetcher(self) -> Fetcher:
        """Of this process: threads and requests do not survive a fork."""
        if self._fetcher is None or self._process != os.getpid():
            self._fetcher = Fetcher(self._path, self._version, self._encoded)
            self._process = os.getpid()
        return self._fetcher


def chunk_ends(dataset: Any, name: str) -> NDArray[np.int64]:
    """Where each chunk of a column ends, in rows.

    Deep Lake has no public word for it. Without a sane one, runs of rows do: then some chunks are fetched twice.
    """
    total = len(dataset)
    try:
        files = dataset._datafiles_report[name].insert_datafiles
        starts = np.array([file.offset_start for file in files], np.int64)
        ends = np.array([file.offset_end for file in files], np.int64)
    except Exception:
        starts = ends = np.empty(0, np.int64)
    if len(ends) and ends[-1] == total and (starts == [0, *ends[:-1]]).all() and (ends > starts).all():
        return ends
    fixed = np.arange(FALLBACK_ROWS, total + FALLBACK_ROWS, FALLBACK_ROWS)
    return np.minimum(fixed, total)


def _chunk(name: str, ends: NDArray[np.int64], number: int) -> Chunk:
    return Chunk(name, int(ends[number - 1]) if number else 0, int(ends[number]))
