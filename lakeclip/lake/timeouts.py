"""Time limits for Deep Lake's requests, which have none of their own.

A request that is pending when the process ends crashes it; one that is pending when the process forks crashes it or
makes it wait for ever, because Deep Lake's own `os.fork` first joins the threads that would answer the request.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

from lakeclip.errors import LakeError

#: Seconds for which the process waits, at its exit, for pending requests.
EXIT_SECONDS = 3.0
#: Seconds for which a fork waits for them. Deep Lake takes 42 s to report that a server cannot be reached.
FORK_SECONDS = 90.0
#: Seconds for which a fork waits after the answer to a request that had timed out. A thread of Deep Lake still works on
#: it then, while the fork replaces the threads that it needs: 2 of 4 processes crashed without this pause, 0 of 12 with
#: 0.05 s or more.
SETTLE_SECONDS = 0.5

#: Functions that stop new requests and wait for their own, for at most the given seconds, and that allow them again.
_pauses: list[tuple[Callable[[float], None], Callable[[], None]]] = []
_guarded_fork: Callable[[], int] | None = None
_pending: list[Any] = []
#: Whether a request has timed out since the last fork.
_has_timed_out = False
_inherited: list[Any] = []


class RequestTimeoutError(Exception):
    """A request was not answered in time. It cannot be stopped, and stays pending."""


def wait(future: Any, seconds: float) -> Any:
    """Return the result of one of Deep Lake's futures, or raise its error.

    Raises:
        RequestTimeoutError: the future is not completed in time.
    """
    global _has_timed_out
    track_request(future)
    end = time.monotonic() + seconds
    pause = 0.0005
    while not future.is_completed():
        if time.monotonic() > end:
            _has_timed_out = True
            raise RequestTimeoutError(f"no answer for {seconds:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return future.result()


def track_request(future: Any) -> None:
    """Remember a request that may still be pending when the process ends."""
    _pending[:] = [other for other in _pending if not other.is_completed()]
    _pending.append(future)


def on_fork(pause: Callable[[float], None], resume: Callable[[], None]) -> None:
    """Call `pause(seconds)` before each fork of this process, and `resume()` after it in the parent."""
    _pauses.append((pause, resume))


def guard_fork() -> None:
    """Make `os.fork` wait until no request is pending; it raises `LakeError` if one is after `FORK_SECONDS`."""
    global _guarded_fork
    if not hasattr(os, "fork") or os.fork is _guarded_fork:
        return
    fork = os.fork

    def fork_after_requests() -> int:
        global _has_timed_out
        end = time.monotonic() + FORK_SECONDS
        try:
            for pause, _ in _pauses:
                pause(max(0.0, end - time.monotonic()))
            while any(not future.is_completed() for future in _pending):
                if time.monotonic() > end:
                    raise LakeError(
                        "cannot start another process while requests to a lake's storage are pending",
                        found=f"no answer for {FORK_SECONDS:g} s",
                        next_step="check the network and that the server runs, then run the command again",
                    )
                time.sleep(0.02)
            if _has_timed_out:
                time.sleep(SETTLE_SECONDS)
                _has_timed_out = False
            return fork()
        finally:
            for _, resume in _pauses:
                resume()

    os.fork = _guarded_fork = fork_after_requests


@atexit.register
def _wait_at_exit() -> None:
    end = time.monotonic() + EXIT_SECONDS
    while any(not future.is_completed() for future in _pending):
        if time.monotonic() > end:
            # Deep Lake's own clean-up, which runs after Python's, would crash: exit before it, with the same status.
            with contextlib.suppress(AttributeError, OSError):  # not glibc
                libc = ctypes.CDLL(None)
                libc.on_exit(libc._exit, None)
            return
        time.sleep(0.02)


def _forget_in_child() -> None:
    # Kept alive, not dropped: the destructor of a future needs threads that a forked process does not have.
    _inherited.extend(_pending)
    _pending.clear()


os.register_at_fork(after_in_child=_forget_in_child)
