"""Several processes that make one group over gloo, each doing the same work with its rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_processes(work: Callable[..., None], world: int, folder: Path, *arguments: Any) -> None:
    """Run `work(rank, world, *arguments)` on `world` processes, one thread each; what it raises in one is raised here.

    Args:
        work: a function of a module, as the processes are started anew.
        folder: empty; where the processes find each other.
    """
    mp.spawn(_one, args=(work, world, f"file://{folder}/store", arguments), nprocs=world)


def _one(rank: int, work: Callable[..., None], world: int, address: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    work(rank, world, *arguments)
    dist.barrier()
    end_at_once()


def end_at_once() -> None:
    """End this process, whose work is done, without taking the interpreter down.

    Once in two hundred times that aborted ("terminate called without an active exception"): data-parallel models keep
    gloo's group, and so its threads, alive until then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
