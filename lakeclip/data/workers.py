"""Worker processes of data loaders: start them, and explain their death.

A worker is forked by a server process that has never imported deeplake. Forking this process instead would hang in
rare cases, for ever: deeplake, once imported, first joins its threads before each fork, and may wait for one that
sleeps (ADR 24).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from lakeclip.errors import LakeclipError, ProcessError

_ADVICE = {
    signal.SIGKILL: "the system may have killed it to free memory (see dmesg): use fewer --num-workers or a smaller "
    "--batch-size",
    signal.SIGBUS: "shared memory is too small: use a larger /dev/shm (docker run --shm-size 8g) or --num-workers 0",
    signal.SIGSEGV: "the data may be damaged: copy or ingest the lake again",
}


#: What the server imports, so that workers need not.
_PRELOADED = "lakeclip.data.stream"


def worker_context() -> BaseContext:
    """Return the way to start workers on this system, and start the server that forks them where there is one."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = _WorkerContext()
    context.set_forkserver_preload([_PRELOADED])
    forkserver.ensure_running()
    return context


class WorkerSetup:
    """Initializer of a worker (`worker_init_fn`): give it the state that a fork of this process would have.

    That is the environment, the working folder and the level of the log, as they are when the worker is started.
    """

    def __getstate__(self) -> dict[str, Any]:
        level = logging.getLogger("lakeclip").getEffectiveLevel()
        return {"environment": dict(os.environ), "folder": os.getcwd(), "level": level}

    def __call__(self, worker: int) -> None:
        # A terminal's Ctrl-C reaches every process. The trainer finishes its step and saves, and needs its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        state = self.__dict__
        if "environment" in state:  # unpickled in another process, not inherited by a fork
            os.environ.clear()
            os.environ.update(state["environment"])
            os.chdir(state["folder"])
            logging.getLogger("lakeclip").setLevel(state["level"])
            # torch's workers end when their parent does: here that is the server, which lives as long as they do.
            threading.Thread(target=_end_with_trainer, name="trainer watch", daemon=True).start()


def _end_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        multiprocessing.connection.wait([trainer.sentinel])
        os._exit(1)


class _WorkerProcess(ForkServerProcess):
    """Process that does not run the user's script again, unless it needs a class or function from there."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802 the name in multiprocessing
        with contextlib.suppress(pickle.PicklingError, AttributeError), _without_main_module():
            return ForkServerProcess._Popen(process_obj)
        return ForkServerProcess._Popen(process_obj)


class _WorkerContext(ForkServerContext):
    Process = _WorkerProcess


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


#: Seconds to wait after a broken connection, until the exit code of the process at its other end is known.
_SECONDS_TO_END = 1.0


def raise_worker_errors(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield a data loader's batches; raise errors that its workers returned as values, and report dead workers.

    Raises:
        LakeclipError: a worker returned it instead of a batch.
        ProcessError: a worker has died.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # If a worker dies while it sends a batch, the broken connection is noticed first.
            death = worker_death_error(error, getattr(batches, "_workers", ()))
            if death is None:
                raise
            raise death from None
        if isinstance(batch, LakeclipError):
            raise batch
        yield batch


def worker_death_error(error: BaseException, workers: Iterable[BaseProcess] = ()) -> ProcessError | None:
    """Convert a data loader's error about a dead worker into one that a user can act on.

    Args:
        error: error that the data loader raised.
        workers: the loader's processes, if known; their exit codes tell how they ended.

    Returns:
        None if the error is about something else.
    """
    message = str(error)
    if isinstance(error, (ConnectionError, EOFError)):
        time.sleep(_SECONDS_TO_END)
        dead = next((worker for worker in workers if worker.exitcode), None)
        if dead is None:
            return None
        message = f"DataLoader worker (pid {dead.pid})"
    elif not isinstance(error, RuntimeError) or not message.startswith("DataLoader worker"):
        return None
    pid = re.search(r"pid(?:\(s\))? (\d+)", message)
    exit_code = next((worker.exitcode for worker in workers if worker.exitcode), None)
    named_signal = re.search(r"killed by signal: (.*?)\.", message)
    outcome = "ended with an error of its own"
    killed_by = None
    if exit_code is not None and exit_code < 0:
        killed_by = signal.Signals(-exit_code)
    elif named_signal:
        killed_by = next((known for known in signal.Signals if signal.strsignal(known) == named_signal[1]), None)
    if killed_by is not None:
        outcome = f"was killed ({killed_by.name})"
    elif exit_code is not None:
        outcome = f"ended with code {exit_code}"
    return ProcessError(
        f"a process that loads data {outcome}",
        found=f"process {pid[1]}" if pid else message,
        next_step=_ADVICE.get(killed_by, "") if killed_by is not None else "",
    )
