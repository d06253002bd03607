"""Groups of processes over gloo that run the same function with different ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_processes(work: Callable[..., None], world: int, folder: Path, *arguments: Any) -> None:
    """Run `work(rank, world, *arguments)` on `world` processes, one thread each, and raise their errors here.

    Args:
        work: function of a module, since the processes import it.
        folder: empty folder for the file through which the processes find each other.
    """
    mp.spawn(_run_rank, args=(work, world, f"file://{folder}/store", arguments), nprocs=world)


def _run_rank(rank: int, work: Callable[..., None], world: int, address: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    work(rank, world, *arguments)
    dist.barrier()
    exit_immediately()


def communicate(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """Return what a process prints until its end.

    If it does not end in time, it and its descendants are killed, and the error holds where each of them stood: give
    them PYTHONFAULTHANDLER=1 for that.
    """
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for pid in reversed(_descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:  # stopped, or not a Python process
            process.kill()
            out, err = process.communicate(timeout=20)
        lines = [line for line in f"{out}\n{err}".splitlines() if not line.startswith("Extension modules: ")]
        raise AssertionError("\n".join([f"not done after {seconds:g} s: {process.args!r}", *lines])) from None


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # the process has ended, or this is not Linux
        children = []
    return [pid, *(other for child in children for other in _descendants(int(child)))]


def free_port() -> int:
    """Return a port of this machine that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exit_immediately() -> None:
    """End this process, whose work is done, without finalizing the interpreter.

    Finalizing aborted once in two hundred times ("terminate called without an active exception"), since data-parallel
    models keep gloo's group and its threads alive until then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
