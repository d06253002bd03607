"""Deep Lake's requests with an end: they have no time limit of their own, and one still pending crashes the exit."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import time
from typing import Any

#: How long the end of the process waits for requests on their way.
EXIT_SECONDS = 3.0

_pending: list[Any] = []
_inherited: list[Any] = []


class TookTooLongError(Exception):
    """A request has not been answered in its time, and has been left behind."""


def wait(future: Any, seconds: float) -> Any:
    """The result of one of Deep Lake's futures; its errors are raised as they are.

    Raises:
        TookTooLongError: there is none yet. The request cannot be stopped and goes on.
    """
    watch(future)
    end = time.monotonic() + seconds
    pause = 0.0005
    while not future.is_completed():
        if time.monotonic() > end:
            raise TookTooLongError(f"no answer for {seconds:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return future.result()


def watch(future: Any) -> None:
    """Remember a request that may still be on its way when the process ends."""
    _pending[:] = [other for other in _pending if not other.is_completed()]
    _pending.append(future)


@atexit.register
def _end() -> None:
    end = time.monotonic() + EXIT_SECONDS
    while any(not future.is_completed() for future in _pending):
        if time.monotonic() > end:
            # Deep Lake's own clean-up, after Python's, does not survive it: leave before, with the status as it is.
            with contextlib.suppress(AttributeError, OSError):  # not glibc
                libc = ctypes.CDLL(None)
                libc.on_exit(libc._exit, None)
            return
        time.sleep(0.02)


def _leave_to_parent() -> None:
    # Kept, not dropped: what takes such an object apart needs threads that a forked process does not have.
    _inherited.extend(_pending)
    _pending.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
