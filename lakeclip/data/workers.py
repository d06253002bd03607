"""Loading processes that die: killed by the system for want of memory, or taken down by what they read."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from lakeclip.errors import LakeclipError, ProcessError

_ADVICE = {
    signal.SIGKILL: "the system kills what takes too much memory (dmesg says so): fewer --num-workers, or a smaller "
    "--batch-size",
    signal.SIGBUS: "shared memory is too small: a larger /dev/shm (docker run --shm-size 8g), or --num-workers 0",
    signal.SIGSEGV: "what it read may be damaged: copy or ingest the lake again",
}


#: After a connection broke, until the system says how the process at its other end has ended.
_SECONDS_TO_END = 1.0


def handed_over(batches: Iterator[Any]) -> Iterator[Any]:
    """What a data loader's iterator gives, with errors that its processes handed over as values, and their deaths.

    Raises:
        LakeclipError: one that came instead of a batch.
        ProcessError: a process has ended.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # Of one that died while it handed a batch over, the connection tells first.
            dead = dead_worker(error, getattr(batches, "_workers", ()))
            if dead is None:
                raise
            raise dead from None
        if isinstance(batch, LakeclipError):
            raise batch
        yield batch


def dead_worker(error: BaseException, workers: Iterable[BaseProcess] = ()) -> ProcessError | None:
    """A data loader's error about a process of its own that has ended, as one a user can act on.

    Args:
        error: what the data loader raised.
        workers: its processes, where they are known: they say how they ended.

    Returns:
        None if the error is about something else.
    """
    said = str(error)
    ended = None
    if isinstance(error, (ConnectionError, EOFError)):
        time.sleep(_SECONDS_TO_END)
        if (ended := next((worker for worker in workers if worker.exitcode), None)) is None:
            return None
        said = f"DataLoader worker (pid {ended.pid})"
    elif not isinstance(error, RuntimeError) or not said.startswith("DataLoader worker"):
        return None
    pid = re.search(r"pid(?:\(s\))? (\d+)", said)
    number = next((worker.exitcode for worker in workers if worker.exitcode), None)
    named = re.search(r"killed by signal: (.*?)\.", said)
    how = "ended with an error of its own"
    ended_by = None
    if number is not None and number < 0:
        ended_by = signal.Signals(-number)
    elif named:
        ended_by = next((one for one in signal.Signals if signal.strsignal(one) == named[1]), None)
    if ended_by is not None:
        how = f"was killed ({ended_by.name})"
    elif number is not None:
        how = f"ended with code {number}"
    return ProcessError(
        f"a process that loads data {how}",
        found=f"process {pid[1]}" if pid else said,
        next_step=_ADVICE.get(ended_by, "") if ended_by is not None else "",
    )
