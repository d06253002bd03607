"""Translation of the exception that ends a run into an error that says what to do.

Whatever the exception, the checkpoints on the disk are complete, and the run resumes from the last one.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lakeclip.checkpoints.folder import LAST
from lakeclip.data.workers import worker_death_error
from lakeclip.errors import ConfigError, LakeclipError, OutputError
from lakeclip.training.callbacks.rank_watchdog import RankWatchdog

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explain_error(
    error: BaseException, folder: Path, *, verb: str = "train", ranks: RankWatchdog | None = None
) -> BaseException:
    """Return the exception that ended a run as a `LakeclipError` if its cause is known, else unchanged.

    Args:
        folder: folder of the run.
        verb: CLI verb that started the run and resumes it.
        ranks: watchdog of the run's other processes.
    """
    if isinstance(error, ConfigError):
        return error
    known: LakeclipError | None = error if isinstance(error, LakeclipError) else None
    known = known or worker_death_error(error) or _disk_error(error, folder)
    if known is None and ranks is not None and ranks.is_connection_error(error):
        known = ranks.explain(error)
    return _with_resume_command(known, folder, verb) if known is not None else error


def _with_resume_command(error: LakeclipError, folder: Path, verb: str) -> LakeclipError:
    """Append the command that resumes the run to the error's next step."""
    resume = f"lakeclip {verb} --resume {folder}" if (folder / LAST).is_file() else "the same command again"
    first = f"{error.next_step}; then " if error.next_step else ""
    return type(error)(error.what, found=error.found, allowed=error.allowed, next_step=first + resume)


def _disk_error(error: BaseException, folder: Path) -> OutputError | None:
    if _is_full(error):
        return OutputError(
            f"the disk of {folder} is full", found=f"{_free(folder) / 1e6:.0f} MB free", next_step="free some space"
        )
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, Path)):
        return None
    if not folder.is_dir():
        return OutputError(f"the run's folder {folder} is gone", found="no such folder", next_step="move it back")
    if folder.absolute() not in Path(error.filename).absolute().parents:
        return None
    return OutputError(f"{error.filename} cannot be written", found=error.strerror or str(error))


def _is_full(error: BaseException | None) -> bool:
    """Return True if a full disk caused the error. torch's zip writer raises a RuntimeError without an errno."""
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
def silence_full_disk_in_threads() -> Iterator[None]:
    """Hide the traceback of a background thread that finds the disk full, such as TensorBoard's writer.

    The main thread reports the full disk; the thread's traceback would be printed above that message.
    """
    previous = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not _is_full(arguments.exc_value):
            previous(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous
