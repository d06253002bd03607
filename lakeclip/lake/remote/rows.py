"""Rows of a remote lake, read through a cache on the local disk that all processes of the machine share.

Deep Lake reads a slice by fetching the whole chunks under it, some 8 MB each, and rows at random one request at a time.
So whole chunks are fetched, each once per machine (`fetch.py`), and cached on disk (`cache.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake.remote.chunk_file import Chunk, DamagedChunkError
from lakeclip.lake.remote.fetch import Fetcher

#: Rows per chunk if Deep Lake does not say where its own chunks end.
FALLBACK_ROWS = 256

_CHUNKS_AT_ONCE = 32
_MAX_PREFETCHED = 512


class RemoteRows:
    """The values of a remote lake's columns, by row. Picklable.

    Args:
        path: the lake's path.
        version: "ID@VERSION" of the dataset.
        columns: name → type.
        dataset: the opened dataset; it tells where its chunks end, without a request.
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
        """Return the values of a column, in the order of `rows`.

        Raises:
            LakeError: they cannot be fetched.
        """
        ends = self._ends[name]
        numbers = np.searchsorted(ends, rows, side="right")
        needed = np.unique(numbers)
        found: list[Any] = [None] * len(rows)
        if len(needed) > _CHUNKS_AT_ONCE:
            self._prefetch_chunks(name, needed)
        for start in range(0, len(needed), _CHUNKS_AT_ONCE):
            batch = needed[start : start + _CHUNKS_AT_ONCE]
            chunks = [_chunk(name, ends, number) for number in batch.tolist()]
            self._own_fetcher.get(chunks)  # at once, not one by one
            for number, chunk in zip(batch.tolist(), chunks, strict=True):
                positions = np.flatnonzero(numbers == number)
                values = self._read(chunk, rows[positions] - chunk.start)
                for position, value in zip(positions.tolist(), values, strict=True):
                    found[position] = value
        return found

    def prefetch(self, names: Iterable[str], rows: NDArray[np.int64]) -> None:
        """Start to fetch these rows of some columns, and return at once."""
        for name in names:
            self._prefetch_chunks(name, np.unique(np.searchsorted(self._ends[name], rows, side="right")))

    def _prefetch_chunks(self, name: str, numbers: NDArray[np.int64]) -> None:
        chunks = (_chunk(name, self._ends[name], number) for number in numbers[:_MAX_PREFETCHED].tolist())
        self._own_fetcher.prefetch(chunks)

    def _read(self, chunk: Chunk, indices: NDArray[np.int64]) -> list[Any]:
        for _ in range(3):
            (values,) = self._own_fetcher.get([chunk])
            try:
                return values.read(indices.tolist())
            except (DamagedChunkError, OSError):
                self._own_fetcher.discard(chunk)
        raise LakeError(
            f"the cache of the lake at {self._path} cannot be read back",
            found=f"{chunk.file_name} was damaged three times",
            next_step="the disk is failing: set LAKECLIP_CACHE to a folder on another one",
        )

    @property
    def _own_fetcher(self) -> Fetcher:
        """Fetcher of this process: threads and requests do not survive a fork."""
        if self._fetcher is None or self._process != os.getpid():
            self._fetcher = Fetcher(self._path, self._version, self._encoded)
            self._process = os.getpid()
        return self._fetcher


def chunk_ends(dataset: Any, name: str) -> NDArray[np.int64]:
    """Return the row at which each chunk of a column ends.

    Deep Lake has no public API for it. If its private one gives nothing sensible, runs of `FALLBACK_ROWS` rows are used
    and some of Deep Lake's chunks are fetched twice.
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
