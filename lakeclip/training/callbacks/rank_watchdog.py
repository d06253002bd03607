"""The processes of a run, watched by each other: where one is gone, the others end with the reason.

What waits for a process that is gone may wait for long: gloo hears of a closed connection at once, NCCL between the
devices of one machine only when the group's half hour is over, and a process that is evaluating by itself asks nobody.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from lakeclip.errors import ProcessError

#: Seconds within which a process that has lost another must get out by itself; then it is taken out.
GRACE_SECONDS = 15.0

_PAUSE = 0.5
_FIND_SECONDS = 5.0
_SIGNS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|process group|tcpstore|timed out waiting", re.IGNORECASE
)


class _Other(NamedTuple):
    rank: int
    pid: int


class Ranks(Callback):
    """Knows the other processes of a run, and ends this one if another is gone and it cannot end by itself.

    Args:
        finish: adds to a message what is known of the run.
        grace: seconds for ending by itself.
    """

    def __init__(
        self, finish: Callable[[ProcessError], BaseException] = lambda error: error, *, grace: float = GRACE_SECONDS
    ) -> None:
        self._finish = finish
        self._grace = grace
        self._others: list[_Other] = []
        self._started: list[Popen[Any]] = []
        self._world = 1
        self._over = threading.Event()

    # ── Lightning's hooks ─────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
            return
        launcher = trainer.strategy.launcher
        self.begin(getattr(launcher, "procs", []))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._over.set()
        # From here on each may leave when it is ready; before, no one may take that for a death.
        trainer.strategy.barrier("the end of the training")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception) and self.is_about_others(exception):
            self._stay()

    # ── without them ──────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, started: list[Popen[Any]]) -> None:
        """Get to know the others, and watch those on this machine until `end`.

        Args:
            started: those that this process has started itself.
        """
        self._world = dist.get_world_size()
        own = (socket.gethostname(), _process_space())
        everyone: list[Any] = [None] * self._world
        dist.all_gather_object(everyone, (*own, os.getpid()))
        self._others = [
            _Other(rank, pid)
            for rank, (*place, pid) in enumerate(everyone)
            if tuple(place) == own and rank != dist.get_rank()
        ]
        self._started = started
        _dismiss_lightnings_watch()
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def end(self) -> None:
        """Watch no longer."""
        self._over.set()

    def is_about_others(self, error: BaseException) -> bool:
        """Whether an error is one of those that the processes' talking to each other ends with."""
        return self._world > 1 and isinstance(error, (RuntimeError, OSError)) and bool(_SIGNS.search(str(error)))

    def explained(self, error: BaseException) -> ProcessError:
        """An error of the talking between processes, as one a user can act on."""
        self._stay()
        end = time.monotonic() + _FIND_SECONDS
        # The connection may be known to be closed before the process is.
        while not (gone := self._gone()) and time.monotonic() < end:
            time.sleep(0.05)
        return _explain(gone) if gone else _explain_silence(error)

    def _watch(self) -> None:
        while not self._over.wait(_PAUSE):
            if gone := self._gone():
                if not self._over.wait(self._grace):
                    # The main thread hangs in a call that no exception reaches.
                    sys.stderr.write(f"error: {self._finish(_explain(gone))}\n")
                    sys.stderr.flush()
                    os._exit(2)
                return

    def _gone(self) -> list[tuple[_Other, str]]:
        codes = {process.pid: process.poll() for process in self._started}
        return [(other, _how(codes.get(other.pid))) for other in self._others if _has_ended(other.pid)]

    def _stay(self) -> None:
        # torchrun ends the others of a process that died, at once: not before they have said what it was.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _explain(gone: list[tuple[_Other, str]]) -> ProcessError:
    (first, how), *more = gone
    return ProcessError(
        f"rank {first.rank} of the run is gone",
        found=f"process {first.pid} {how}" + (f"; so are ranks {', '.join(str(o.rank) for o, _ in more)}" * bool(more)),
        next_step="see what it said last; a kill by the system for want of memory is in dmesg",
    )


def _explain_silence(error: BaseException) -> ProcessError:
    return ProcessError(
        "another rank of the run no longer answers",
        found=" ".join(str(error).split())[-200:],
        next_step="see what the others said last, on the other machines too",
    )


def _how(code: int | None) -> str:
    if code is None:
        return "has ended"
    return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"


def _has_ended(pid: int) -> bool:
    if not os.path.isdir("/proc/self"):  # not Linux
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False
    try:
        # After the name, in brackets, stands the state: Z for one that nobody has asked after yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _process_space() -> str:
    """What tells containers apart that have one name: a number means the same process only within one of these."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _dismiss_lightnings_watch() -> None:
    """Lightning's own watch kills the first process up to five seconds after the death of another, without a word."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
            thread._child_processes = []
