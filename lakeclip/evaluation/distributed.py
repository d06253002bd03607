"""Division of an evaluation between the processes of a distributed run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lakeclip.errors import LakeclipError

Part = TypeVar("Part")


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`: the items `index`, `index + count`, …"""

    index: int
    count: int

    @property
    def items(self) -> slice:
        """Slice that selects the items of this shard."""
        return slice(self.index, None, self.count)


def find_shard(model: nn.Module) -> Shard:
    """Return the shard of the images that this process encodes.

    A model sharded with FSDP computes on all processes at once, so every process must run the same number of batches:
    there, each process encodes all images.
    """
    is_divided = dist.is_available() and dist.is_initialized() and not isinstance(model, FSDPModule)
    return Shard(dist.get_rank(), dist.get_world_size()) if is_divided else Shard(0, 1)


def gather_parts(compute: Callable[[], Part], num_shards: int) -> list[Part]:
    """Compute this process's part, and return the parts of all processes in the order of their ranks.

    An error on one process is raised on all of them, so that none waits for it.

    Raises:
        LakeclipError: raised by `compute` on any process.
    """
    part: Part | LakeclipError
    try:
        part = compute()
    except LakeclipError as error:
        part = error
    parts: list[Any] = [part]
    if num_shards > 1:
        parts = [None] * num_shards
        dist.all_gather_object(parts, part)
    for gathered in parts:
        if isinstance(gathered, LakeclipError):
            raise gathered
    return parts
