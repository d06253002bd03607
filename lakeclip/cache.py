"""The folder for everything that lakeclip caches on the local disk, and its size limit."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Folder of the cache.
FOLDER_VARIABLE = "LAKECLIP_CACHE"
#: Size limit in gigabytes; 0 turns the cache off.
LIMIT_VARIABLE = "LAKECLIP_CACHE_GB"

_STALE_SECONDS = 3600.0


def cache_folder() -> Path:
    """Return the folder of the cache; it may not exist yet."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/lakeclip").expanduser()


def limit_gb() -> float | None:
    """Return the size limit that the user has set, in gigabytes; None if it is not set."""
    try:
        return max(0.0, float(os.environ[LIMIT_VARIABLE]))
    except (KeyError, ValueError):
        return None


class FileCache:
    """Files below a folder; the least recently used ones are removed when together they exceed a size limit.

    Any number of processes may share it. A file is written under another name and renamed, so that it is complete or
    absent. No index is kept, and any process may remove any file. Files that end in `.lock` are left alone.

    Args:
        folder: created on the first write.
        max_bytes: the size limit; by default half of the disk space that is free or used by the cache.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._unchecked_bytes: int | None = None  # written since the size was last checked; None before the first check

    @property
    def max_bytes(self) -> int:
        """The size limit."""
        if self._max_bytes is None:
            free = shutil.disk_usage(self.folder).free
            self._max_bytes = (free + sum(size for _, size, _ in self._list_files())) // 2
        return self._max_bytes

    def write(self, path: Path, content: Sequence[bytes]) -> bool:
        """Write a file, and remove others if there is no room for it.

        Args:
            path: anywhere below the folder.
            content: one after another, the bytes of the file.

        Returns:
            False if the file alone would exceed the size limit, so that it was not written.

        Raises:
            OSError: the file cannot be written.
        """
        num_bytes = sum(map(len, content))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if num_bytes > self.max_bytes:
            return False
        self._make_room(num_bytes)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("wb", buffering=1 << 20) as file:
                file.writelines(content)
            temporary.replace(path)
        except BaseException:
            self.remove(temporary)
            raise
        return True

    @staticmethod
    def mark_used(path: Path) -> None:
        """Set a file's time of last use to now."""
        with contextlib.suppress(OSError):
            os.utime(path)

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(OSError):
            path.unlink()

    def _make_room(self, num_bytes: int) -> None:
        # Listing all files at every write would cost more than the write.
        if self._unchecked_bytes is not None and self._unchecked_bytes + num_bytes <= self.max_bytes // 64:
            self._unchecked_bytes += num_bytes
            return
        self._unchecked_bytes = 0
        files = sorted(self._list_files())
        excess = sum(size for _, size, _ in files) + num_bytes - self.max_bytes
        if excess <= 0:
            return
        excess += self.max_bytes // 16  # some room to spare for what is written until the next check
        for _, size, path in files:
            if excess <= 0:
                return
            self.remove(Path(path))
            excess -= size

    def _list_files(self) -> Iterator[tuple[float, int, str]]:
        """Yield each file's time of last use, size and path; remove what an ended process left half-written."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    if name.endswith(".tmp") and time.time() - status.st_mtime > _STALE_SECONDS:
                        os.unlink(path)
                    elif not name.endswith(".lock"):
                        yield status.st_mtime, status.st_size, path


def open_cache(name: str, max_bytes: int | None = None) -> FileCache | None:
    """Return the cache in a subfolder of LAKECLIP_CACHE; None if LAKECLIP_CACHE_GB is 0.

    Args:
        name: the subfolder.
        max_bytes: size limit; LAKECLIP_CACHE_GB may lower it. By default LAKECLIP_CACHE_GB, or half of the disk.
    """
    limit = limit_gb()
    if limit == 0:
        return None
    if limit is not None:
        max_bytes = min(int(limit * 1e9), max_bytes if max_bytes is not None else int(limit * 1e9))
    return FileCache(cache_folder() / name, max_bytes)
