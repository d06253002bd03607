"""Chunks of remote lakes on the local disk, shared by all processes of the machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lakeclip.cache import FileCache, cache_folder, open_cache
from lakeclip.lake.remote.chunk_file import Chunk, ChunkFile, DamagedChunkError, encode_chunk

_log = logging.getLogger(__name__)

_OUTAGE = "outage"


class ChunkCache:
    """The cached chunks of one version of one lake.

    Args:
        name: identifies the lake and its version; each name has a folder of its own.
    """

    def __init__(self, name: str) -> None:
        self._files = open_cache("chunks")
        self._folder = cache_folder() / "chunks" / hashlib.sha256(name.encode()).hexdigest()[:24]
        self._has_warned = False
        if self._files is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError:
                self._files = None

    @property
    def is_on(self) -> bool:
        """False if the user has turned the cache off, or if its folder cannot be created."""
        return self._files is not None

    def load(self, chunk: Chunk) -> ChunkFile | None:
        """Open a chunk's file; return None if there is none. A damaged file is removed."""
        if self._files is None:
            return None
        path = self._folder / chunk.file_name
        try:
            file = ChunkFile(path)
        except DamagedChunkError:
            self._files.remove(path)
            return None
        except OSError:
            return None
        self._files.mark_used(path)
        return file

    def has(self, chunk: Chunk) -> bool:
        """Return True if there is a file of the chunk, damaged or not."""
        return self._files is not None and (self._folder / chunk.file_name).exists()

    def remove(self, chunk: Chunk) -> None:
        """Remove a chunk's file if there is one."""
        if self._files is not None:
            self._files.remove(self._folder / chunk.file_name)

    def store(self, chunk: Chunk, values: Any) -> ChunkFile | None:
        """Write a chunk's values; return None if they cannot be stored, for their type or for lack of room."""
        if self._files is None or (content := encode_chunk(values)) is None:
            return None
        path = self._folder / chunk.file_name
        try:
            return ChunkFile(path) if self._files.write(path, content) else None
        except (OSError, DamagedChunkError) as error:
            if not self._has_warned:
                self._has_warned = True
                reason = getattr(error, "strerror", None) or "the disk does not keep what is written to it"
                _log.warning(
                    "%s cannot be written (%s): parts of the lake will be fetched more than once",
                    self._files.folder,
                    reason,
                )
            return None

    def lock(self, name: str) -> FileLock | None:
        """Lock a name; return None if another process, or another reader in this one, holds the lock.

        Raises:
            OSError: the lock file cannot be created.
        """
        lock = FileLock(self._folder / f"{name}.lock", mode=0o600, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    @staticmethod
    def unlock(lock: FileLock) -> None:
        """Release a lock and remove its file."""
        FileCache.remove(Path(lock.lock_file))
        lock.release()

    def note_outage_end(self) -> None:
        """Record that an outage of the server has ended now."""
        with contextlib.suppress(OSError):
            (self._folder / _OUTAGE).touch()

    def last_outage_end(self) -> float:
        """Return the time at which the last outage ended, in seconds since 1970; 0 if there was none."""
        try:
            return (self._folder / _OUTAGE).stat().st_mtime
        except OSError:
            return 0.0
