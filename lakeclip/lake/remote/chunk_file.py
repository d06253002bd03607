"""The file format of a cached chunk, in which every value has a checksum.

A file holds a header, a slot for each value (offset, length, checksum) and the values. One value is read with two
`pread` calls and checked on the way, so a damaged or truncated file raises an error and never gives a wrong value.
ADR 20 compares it with Arrow IPC.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"lakeclp2"
_HEADER = struct.Struct("<8sIIQI")  # magic, kind, number of blobs, size of the file, checksum of the header so far
_SLOT = struct.Struct("<QqII")  # offset, length (-1: no value), checksum of the blob, checksum of this slot so far
_SLOTS = np.dtype([("offset", "<u8"), ("length", "<i8"), ("crc", "<u4"), ("slot_crc", "<u4")])
_BYTES, _TEXT, _ARRAY = range(3)
_ROWS_PER_BLOB = 1024  # of an array


class DamagedChunkError(Exception):
    """A file of the cache does not hold what was written to it."""


class Chunk(NamedTuple):
    """Rows `start` up to, but not including, `stop` of one column."""

    column: str
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """Name of its file in the lake's folder."""
        digest = hashlib.sha256(self.column.encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9]', '_', self.column)[:40]}-{digest}-{self.start}-{self.stop}"


class MemoryChunk:
    """A chunk's values in memory, for types that cannot be stored and for full disks."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.num_bytes = sum(len(value) for value in values if isinstance(value, (bytes, str)))
        if isinstance(values, np.ndarray):
            self.num_bytes = values.nbytes

    def read(self, indices: Sequence[int]) -> list[Any]:
        """Return the values at these indices of the chunk."""
        if isinstance(self._values, np.ndarray) and self._values.ndim == 1:
            return [self._values[index].item() for index in indices]
        return [self._values[index] for index in indices]


class ChunkFile:
    """A chunk's values in a file, read one by one, each checked against its checksum.

    Raises:
        DamagedChunkError: the file is not a chunk, or it has another size than when it was written.
        OSError: the file cannot be opened.
    """

    num_bytes = 0  # in memory

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        header = os.pread(self._descriptor, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            raise DamagedChunkError(path)
        magic, self._kind, self._num_blobs, size, crc = _HEADER.unpack(header)
        is_intact = magic == _MAGIC and zlib.crc32(header[:-4]) == crc
        if not is_intact or os.fstat(self._descriptor).st_size != size:
            raise DamagedChunkError(path)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, indices: Sequence[int]) -> list[Any]:
        """Return the values at these indices of the chunk.

        Raises:
            DamagedChunkError: a value is not what was written.
        """
        if self._kind == _ARRAY:
            return self._read_array(indices)
        blobs = [self._read_blob(index) for index in indices]
        if self._kind == _BYTES:
            return blobs
        return [blob if blob is None else blob.decode("utf-8", "surrogatepass") for blob in blobs]

    def _read_array(self, indices: Sequence[int]) -> list[Any]:
        layout = json.loads(self._read_blob(0) or b"{}")
        pieces: dict[int, NDArray[Any]] = {}
        values = []
        for index in indices:
            number, row = divmod(index, _ROWS_PER_BLOB)
            if number not in pieces:
                flat = np.frombuffer(self._read_blob(1 + number) or b"", layout["dtype"])
                pieces[number] = flat.reshape(-1, *layout["shape"])
            values.append(pieces[number][row] if layout["shape"] else pieces[number][row].item())
        return values

    def _read_blob(self, index: int) -> bytes | None:
        slot = os.pread(self._descriptor, _SLOT.size, _HEADER.size + index * _SLOT.size)
        if not 0 <= index < self._num_blobs or len(slot) < _SLOT.size:
            raise DamagedChunkError(self._path)
        offset, length, crc, slot_crc = _SLOT.unpack(slot)
        if zlib.crc32(slot[:-4]) != slot_crc:
            raise DamagedChunkError(self._path)
        if length < 0:
            return None
        blob = os.pread(self._descriptor, length, offset)
        if len(blob) != length or zlib.crc32(blob) != crc:
            raise DamagedChunkError(self._path)
        return blob


def encode_chunk(values: Any) -> list[bytes] | None:
    """Return the content of a chunk's file, in pieces; None if the values are of a type that cannot be stored."""
    blobs: list[bytes | None]
    if isinstance(values, np.ndarray) and not values.dtype.hasobject:
        layout = json.dumps({"dtype": values.dtype.str, "shape": list(values.shape[1:])}).encode()
        starts = range(0, len(values), _ROWS_PER_BLOB)
        return _assemble(_ARRAY, [layout, *(values[start : start + _ROWS_PER_BLOB].tobytes() for start in starts)])
    blobs = list(values)
    if all(value is None or isinstance(value, bytes) for value in blobs):
        return _assemble(_BYTES, blobs)
    if all(value is None or isinstance(value, str) for value in values):
        return _assemble(_TEXT, [text if text is None else text.encode("utf-8", "surrogatepass") for text in values])
    return None


def _assemble(kind: int, blobs: Sequence[bytes | None]) -> list[bytes]:
    slots = np.zeros(len(blobs), _SLOTS)
    contents = [blob or b"" for blob in blobs]
    lengths = np.array([len(blob) for blob in contents], np.int64)
    first = _HEADER.size + slots.nbytes
    slots["offset"] = first + np.cumsum(lengths) - lengths
    slots["length"] = np.where([blob is None for blob in blobs], -1, lengths)
    slots["crc"] = [zlib.crc32(blob) for blob in contents]
    table = slots.tobytes()
    slots["slot_crc"] = [zlib.crc32(table[i : i + _SLOT.size - 4]) for i in range(0, len(table), _SLOT.size)]
    header = _HEADER.pack(_MAGIC, kind, len(blobs), first + int(lengths.sum()), 0)[:-4]
    return [header + struct.pack("<I", zlib.crc32(header)), slots.tobytes(), *contents]
