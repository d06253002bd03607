"""Watchdog of a run's processes: if one of them dies, the others end with an error that names it.

Without it, the others may wait for long. Gloo notices a closed connection at once; NCCL between devices of one machine
only after the process group's timeout of half an hour; a process that evaluates on its own communicates with nobody.
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

#: Seconds that a process has to end by itself after another one died; then the watchdog ends it.
GRACE_SECONDS = 15.0

_POLL_SECONDS = 0.5
#: Seconds to wait, after a connection was closed, for the process at its other end to be gone.
_DEATH_SECONDS = 5.0
_CONNECTION_ERRORS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|process group|tcpstore|timed out waiting", re.IGNORECASE
)


class _Peer(NamedTuple):
    rank: int
    pid: int


class RankWatchdog(Callback):
    """Callback that watches the run's other processes on this machine, and ends this one if another has died.

    Args:
        complete_error: adds to an error what is known about the run, such as the command that resumes it.
        grace: seconds that this process has to end by itself.
    """

    def __init__(
        self,
        complete_error: Callable[[ProcessError], BaseException] = lambda error: error,
        *,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._complete_error = complete_error
        self._grace = grace
        self._peers: list[_Peer] = []
        self._children: list[Popen[Any]] = []
        self._world_size = 1
        self._stopped = threading.Event()

    # ── Lightning's hooks ─────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
            return
        launcher = trainer.strategy.launcher
        self.start(getattr(launcher, "procs", []))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stopped.set()
        # From here on each process may end when it is ready: all watchdogs are stopped after the barrier.
        trainer.strategy.barrier("the end of the training")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception) and self.is_connection_error(exception):
            self._ignore_sigterm()

    # ── outside Lightning ─────────────────────────────────────────────────────────────────────────────────────────

    def start(self, children: list[Popen[Any]]) -> None:
        """Exchange process ids, and watch the processes on this machine until `stop`.

        Args:
            children: the processes that this process has launched.
        """
        self._world_size = dist.get_world_size()
        machine = (socket.gethostname(), _pid_namespace())
        processes: list[Any] = [None] * self._world_size
        dist.all_gather_object(processes, (*machine, os.getpid()))
        self._peers = [
            _Peer(rank, pid)
            for rank, (*peer_machine, pid) in enumerate(processes)
            if tuple(peer_machine) == machine and rank != dist.get_rank()
        ]
        self._children = children
        _disable_lightning_observer()
        threading.Thread(target=self._watch, name="rank-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def is_connection_error(self, error: BaseException) -> bool:
        """Return True if an error comes from the communication between the processes."""
        return (
            self._world_size > 1
            and isinstance(error, (RuntimeError, OSError))
            and bool(_CONNECTION_ERRORS.search(str(error)))
        )

    def explain(self, error: BaseException) -> ProcessError:
        """Turn a communication error into one that names the process that died, or says that a rank does not answer."""
        self._ignore_sigterm()
        end = time.monotonic() + _DEATH_SECONDS
        # The connection may be closed before the process is gone.
        while not (dead := self._dead_peers()) and time.monotonic() < end:
            time.sleep(0.05)
        return _death_error(dead) if dead else _silence_error(error)

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            if dead := self._dead_peers():
                if not self._stopped.wait(self._grace):
                    # The main thread hangs in a call that no exception interrupts.
                    sys.stderr.write(f"error: {self._complete_error(_death_error(dead))}\n")
                    sys.stderr.flush()
                    os._exit(2)
                return

    def _dead_peers(self) -> list[tuple[_Peer, str]]:
        codes = {process.pid: process.poll() for process in self._children}
        return [(peer, _describe_exit(codes.get(peer.pid))) for peer in self._peers if _has_ended(peer.pid)]

    def _ignore_sigterm(self) -> None:
        # torchrun sends SIGTERM to the other processes when one dies; they report the reason first.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _death_error(dead: list[tuple[_Peer, str]]) -> ProcessError:
    (first, how), *others = dead
    also = f"; ranks {', '.join(str(peer.rank) for peer, _ in others)} have died too" if others else ""
    return ProcessError(
        f"rank {first.rank} of the run has died",
        found=f"process {first.pid} {how}{also}",
        next_step="read its last output; dmesg says whether the system killed it because memory ran out",
    )


def _silence_error(error: BaseException) -> ProcessError:
    return ProcessError(
        "another rank of the run does not answer any more",
        found=" ".join(str(error).split())[-200:],
        next_step="read the last output of the other ranks, also on other machines",
    )


def _describe_exit(code: int | None) -> str:
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
        # The state follows the name, which is in brackets. Z is a zombie, which its parent has not waited for.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _pid_namespace() -> str:
    """Return the PID namespace, within which PIDs are unique; containers may have equal host names."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _disable_lightning_observer() -> None:
    """Disable Lightning's observer, which silently kills the first process within five seconds of another's death."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
            thread._child_processes = []
