"""Lock of a run's folder, so that two processes never train one run at the same time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lakeclip.errors import OutputError
from lakeclip.training.loggers import is_main

#: Descriptors of the folders that this process has locked, by real path.
_held: dict[str, int] = {}


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder in the run's first process. It leaves no file, and ends with the process.

    The folder itself is locked (flock). A file system without such locks is used unlocked.

    Raises:
        OutputError: another process trains this run.
    """
    path = os.path.realpath(folder)
    descriptor = _acquire(path, folder) if is_main() and path not in _held and os.path.isdir(path) else None
    if descriptor is None:
        yield
        return
    _held[path] = descriptor
    try:
        yield
    finally:
        del _held[path]
        os.close(descriptor)


def _acquire(path: str, folder: Path) -> int | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        number = os.fstat(descriptor).st_ino
        os.close(descriptor)
        raise OutputError(
            f"the run in {folder} is still running",
            found=f"{_owner(number)} trains it",
            next_step="wait for its end, or stop it with Ctrl-C or SIGTERM: it writes a checkpoint first",
        ) from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _owner(inode: int) -> str:
    """Name the process that holds a lock; the kernel lists those of this machine."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if "FLOCK" in words and words[-3].endswith(f":{inode}"):
            return f"process {words[-4]}"
    return "another process"


def _close_in_child() -> None:
    # A loader's worker may outlive its killed parent for some seconds, and would keep the lock.
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
