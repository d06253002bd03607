"""Faults that end a run: what came up from wherever it happened, as an error that says what to do.

Whatever it is, the checkpoints on the disk are whole, and the run goes on from the last of them.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lakeclip.checkpoints.folder import LAST
from lakeclip.data.workers import dead_worker
from lakeclip.errors import ConfigError, LakeclipError, OutputError
from lakeclip.training.recovery.ranks import Ranks

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explained(error: BaseException, folder: Path, *, verb: str = "train", ranks: Ranks | None = None) -> BaseException:
    """The error that ended a run, as the user's where it is one; else as it is.

    Args:
        folder: of the run.
        verb: that began it, and goes on with it.
        ranks: its other processes.
    """
    if isinstance(error, ConfigError):
        return error
    known: LakeclipError | None = error if isinstance(error, LakeclipError) else None
    known = known or dead_worker(error) or _of_the_disk(error, folder)
    if known is None and ranks is not None and ranks.is_about_others(error):
        known = ranks.explained(error)
    return _with_the_way_on(known, folder, verb) if known is not None else error


def _with_the_way_on(error: LakeclipError, folder: Path, verb: str) -> LakeclipError:
    """The same error, whose next step ends with how the run goes on."""
    way = f"lakeclip {verb} --resume {folder}" if (folder / LAST).is_file() else "the same command again"
    first = f"{error.next_step}; then " if error.next_step else ""
    return type(error)(error.what, found=error.found, allowed=error.allowed, next_step=first + way)


def _of_the_disk(error: BaseException, folder: Path) -> OutputError | None:
    if _is_full(error):
        return OutputError(
            f"the disk of {folder} is full", found=f"{_free(folder) / 1e6:.0f} MB free", next_step="make room"
        )
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, Path)):
        return None
    if not folder.is_dir():
        return OutputError(f"the run's folder {folder} is gone", found="nothing is there", next_step="put it back")
    if folder.absolute() not in Path(error.filename).absolute().parents:
        return None
    return OutputError(f"{error.filename} cannot be written", found=error.strerror or str(error))


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the bottom of it: torch's writer has no number for what it met."""
    while error is not None:
        if getattr(error, "errno", None) in _FULL or "PytorchStreamWriter" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def full_disks_are_not_for_threads() -> Iterator[None]:
    """A thread that writes curves and finds the disk full says so to the main thread, and to no one else.

    Without this, its traceback comes before the one message that helps.
    """
    before = threading.excepthook

    def heard(arguments: threading.ExceptHookArgs) -> None:
        if not _is_full(arguments.exc_value):
            before(arguments)

    threading.excepthook = heard
    try:
        yield
    finally:
        threading.excepthook = before
