"""Chunks of remote lakes on the local disk, shared by all processes of the machine.

A chunk is the values of one column in a run of rows. Each is a file, made under another name and renamed, so that it is
there whole or not at all; every value has a checksum, so that a file that has been cut or changed is never believed. No
index is kept: the folder is the truth, and any process may remove any file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

#: Folder of the cache, and how many gigabytes it may grow to; 0 turns it off.
FOLDER_VARIABLE = "LAKECLIP_CACHE"
LIMIT_VARIABLE = "LAKECLIP_CACHE_GB"

_MAGIC = b"lakeclp1"
_HEADER = struct.Struct("<8sIIQ")  # magic, kind, number of blobs, size of the file
_SLOT = struct.Struct("<QqII")  # offset, length (-1: no value), checksum of the blob, checksum of this slot so far
_SLOTS = np.dtype([("offset", "<u8"), ("length", "<i8"), ("crc", "<u4"), ("own_crc", "<u4")])
_BYTES, _TEXT, _ARRAY = range(3)
_PIECE = 1024
"""Rows of an array that are read together."""
_STALE_SECONDS = 3600.0
_OUTAGE = "outage"


def cache_folder() -> Path:
    """Where all that is kept to save work lies; it may not be there yet."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/lakeclip").expanduser()


def limit_gb() -> float | None:
    """How many gigabytes the user allows; None where nothing is said."""
    try:
        return max(0.0, float(os.environ[LIMIT_VARIABLE]))
    except (KeyError, ValueError):
        return None


class DamagedChunkError(Exception):
    """A file of the cache does not hold what was written to it."""


class Chunk(NamedTuple):
    """Which chunk: rows `start` up to, not with, `stop` of a column."""

    column: str
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """Its file in the lake's folder."""
        digest = hashlib.sha256(self.column.encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9]', '_', self.column)[:40]}-{digest}-{self.start}-{self.stop}"


class Held:
    """A chunk's values in memory: of a kind that is not stored, or the disk has no room."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.num_bytes = sum(len(value) for value in values if isinstance(value, (bytes, str)))
        if isinstance(values, np.ndarray):
            self.num_bytes = values.nbytes

    def take(self, places: Sequence[int]) -> list[Any]:
        """The values at places in the chunk."""
        if isinstance(self._values, np.ndarray) and self._values.ndim == 1:
            return [self._values[place].item() for place in places]
        return [self._values[place] for place in places]


class Stored:
    """A chunk's values in a file of the cache, read one by one, each against its checksum.

    Raises:
        DamagedChunkError: the file is no chunk, or has been cut.
        OSError: there is no such file.
    """

    num_bytes = 0

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        head = os.pread(self._descriptor, _HEADER.size, 0)
        if len(head) < _HEADER.size:
            raise DamagedChunkError(path)
        magic, self._kind, self._count, size = _HEADER.unpack(head)
        if magic != _MAGIC or os.fstat(self._descriptor).st_size != size:
            raise DamagedChunkError(path)
        with contextlib.suppress(OSError):
            os.utime(path)  # those that were used longest ago are removed first

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def take(self, places: Sequence[int]) -> list[Any]:
        """The values at places in the chunk.

        Raises:
            DamagedChunkError: they are not what was written.
        """
        if self._kind == _ARRAY:
            return self._take_array(places)
        blobs = [self._blob(place) for place in places]
        if self._kind == _BYTES:
            return blobs
        return [blob if blob is None else blob.decode("utf-8", "surrogatepass") for blob in blobs]

    def _take_array(self, places: Sequence[int]) -> list[Any]:
        head = json.loads(self._blob(0) or b"{}")
        pieces: dict[int, NDArray[Any]] = {}
        values = []
        for place in places:
            number, row = divmod(place, _PIECE)
            if number not in pieces:
                flat = np.frombuffer(self._blob(1 + number) or b"", head["dtype"])
                pieces[number] = flat.reshape(-1, *head["shape"])
            values.append(pieces[number][row] if head["shape"] else pieces[number][row].item())
        return values

    def _blob(self, place: int) -> bytes | None:
        slot = os.pread(self._descriptor, _SLOT.size, _HEADER.size + place * _SLOT.size)
        if not 0 <= place < self._count or len(slot) < _SLOT.size:
            raise DamagedChunkError(self._path)
        offset, length, crc, own_crc = _SLOT.unpack(slot)
        if zlib.crc32(slot[:-4]) != own_crc:
            raise DamagedChunkError(self._path)
        if length < 0:
            return None
        blob = os.pread(self._descriptor, length, offset)
        if len(blob) != length or zlib.crc32(blob) != crc:
            raise DamagedChunkError(self._path)
        return blob


class Lock:
    """A file lock of one process against all others; gone with the process. Made by `Cache.lock`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the next one in."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing is not enough where a forked child has it too
        self.close()

    def close(self) -> None:
        """Have nothing to do with it any more, in a forked child: it stays its parent's."""
        os.close(self._descriptor)


class Cache:
    """The chunks of one version of one lake.

    Args:
        name: what the lake and its version are known by; another name, another folder.
    """

    def __init__(self, name: str) -> None:
        self.root = cache_folder() / "chunks"
        self.folder = self.root / hashlib.sha256(name.encode()).hexdigest()[:24]
        self._limit_gb = limit_gb()
        self._unaccounted = 0
        self._has_complained = False
        self.is_on = self._limit_gb != 0
        if self.is_on:
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError:
                self.is_on = False

    def load(self, chunk: Chunk) -> Stored | None:
        """A chunk, if it is there and whole; one that is not whole is removed."""
        path = self.folder / chunk.file_name
        try:
            return Stored(path) if self.is_on else None
        except DamagedChunkError:
            self.remove(chunk)
        except OSError:
            pass
        return None

    def has(self, chunk: Chunk) -> bool:
        """Whether there is a file of a chunk, whole or not."""
        return self.is_on and (self.folder / chunk.file_name).exists()

    def remove(self, chunk: Chunk) -> None:
        """Forget a chunk."""
        with contextlib.suppress(OSError):
            (self.folder / chunk.file_name).unlink()

    def store(self, chunk: Chunk, values: Any) -> Stored | None:
        """Keep a chunk's values; None where they cannot be kept: an odd type, no room on the disk."""
        encoded = _encode(values) if self.is_on else None
        if encoded is None:
            return None
        kind, blobs = encoded
        parts = _layout(kind, blobs)
        size = sum(map(len, parts))
        limit = self._limit()
        if size > limit:
            return None
        self._unaccounted += size
        if self._unaccounted > limit / 64:
            self._make_room(limit, size)
        path = self.folder / chunk.file_name
        making = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            # Not 'x': what an ended process of the same number has left is in nobody's use.
            with making.open("wb", buffering=1 << 20) as file:
                file.writelines(parts)
            making.rename(path)
            return Stored(path)
        except (OSError, DamagedChunkError) as error:
            with contextlib.suppress(OSError):
                making.unlink()
            if not self._has_complained:
                self._has_complained = True
                reason = getattr(error, "strerror", None) or "the disk does not keep what is written to it"
                _log.warning(
                    "%s cannot be written (%s): some of the lake is fetched again and again", self.root, reason
                )
            return None

    def lock(self, name: str) -> Lock | None:
        """A lock by name, or None while another process has it (or another reader in this one).

        Raises:
            OSError: there is no cache to lock in.
        """
        path = self.folder / f"{name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it before has removed the file: a lock on that keeps nobody out.
            if os.fstat(descriptor).st_nlink:
                return Lock(path, descriptor)
        except BlockingIOError:
            pass
        os.close(descriptor)
        return None

    def note_outage(self) -> None:
        """Remember that an outage of the server has ended now."""
        with contextlib.suppress(OSError):
            (self.folder / _OUTAGE).touch()

    def last_outage(self) -> float:
        """When one has ended, in seconds since 1970; 0 if none has."""
        try:
            return (self.folder / _OUTAGE).stat().st_mtime
        except OSError:
            return 0.0

    def _limit(self) -> int:
        if self._limit_gb is not None:
            return int(self._limit_gb * 1e9)
        if not hasattr(self, "_share"):
            free = shutil.disk_usage(self.folder).free
            self._share = (free + sum(size for _, size, _ in self._files())) // 2
        return self._share

    def _make_room(self, limit: int, size: int) -> None:
        """Remove what was used longest ago, of any lake, until there is room to spare."""
        self._unaccounted = 0
        files = sorted(self._files())
        total = sum(size for _, size, _ in files) + size
        goal = limit if total <= limit else limit - limit // 16
        for _, file_size, path in files:
            if total <= goal:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= file_size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        for folder in _scan(self.root):
            for entry in _scan(folder.path):
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if entry.name.endswith(".lock"):
                        continue
                    if entry.name.endswith(".tmp") and time.time() - status.st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)
                        continue
                    yield status.st_mtime, status.st_size, entry.path


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _encode(values: Any) -> tuple[int, list[bytes | None]] | None:
    if isinstance(values, np.ndarray) and not values.dtype.hasobject:
        head = json.dumps({"dtype": values.dtype.str, "shape": list(values.shape[1:])}).encode()
        pieces = [values[start : start + _PIECE].tobytes() for start in range(0, len(values), _PIECE)]
        return _ARRAY, [head, *pieces]
    plain = list(values)
    if all(value is None or isinstance(value, bytes) for value in plain):
        return _BYTES, plain
    if all(value is None or isinstance(value, str) for value in plain):
        return _TEXT, [value if value is None else value.encode("utf-8", "surrogatepass") for value in plain]
    return None


def _layout(kind: int, blobs: Sequence[bytes | None]) -> list[bytes]:
    slots = np.zeros(len(blobs), _SLOTS)
    full = [blob or b"" for blob in blobs]
    lengths = np.array([len(blob) for blob in full], np.int64)
    first = _HEADER.size + slots.nbytes
    slots["offset"] = first + np.cumsum(lengths) - lengths
    slots["length"] = np.where([blob is None for blob in blobs], -1, lengths)
    slots["crc"] = [zlib.crc32(blob) for blob in full]
    table = slots.tobytes()
    slots["own_crc"] = [zlib.crc32(table[place : place + _SLOT.size - 4]) for place in range(0, len(table), _SLOT.size)]
    return [_HEADER.pack(_MAGIC, kind, len(blobs), first + int(lengths.sum())), slots.tobytes(), *full]
