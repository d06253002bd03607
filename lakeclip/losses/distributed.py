"""Collectives over the processes' pairs; no-ops when the world size is 1. All ranks must hold equally many pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


class RankInfo(NamedTuple):
    """The rank of this process and the number of processes that train together."""

    rank: int
    world: int


def rank_info(*, local_only: bool) -> RankInfo:
    """Return this process's rank and the world size; (0, 1) if it is to compare its own pairs only."""
    if local_only or not (dist.is_available() and dist.is_initialized()):
        return RankInfo(0, 1)
    return RankInfo(dist.get_rank(), dist.get_world_size())


def pack_features(features: Float[Tensor, "batch embed"], positive_ids: Int[Tensor, "batch keys"] | None) -> Tensor:
    """Join features and ids in one tensor, so that one message carries both; the ids' bits are columns of features."""
    if positive_ids is None:
        return features.contiguous()
    return torch.cat([features, positive_ids.to(torch.int64).contiguous().view(features.dtype)], dim=1)


def unpack_features(packed: Tensor, embed: int) -> tuple[Tensor, Tensor | None]:
    """Split what `pack_features` joined into features and ids."""
    if packed.shape[1] == embed:
        return packed, None
    return packed[:, :embed].contiguous(), packed[:, embed:].contiguous().view(torch.int64)


def all_gather(rows: Tensor, world: int) -> Tensor:
    """Return the rows of all processes, in order of rank."""
    if world == 1:
        return rows
    gathered = rows.new_empty((world * len(rows), *rows.shape[1:]))
    dist.all_gather(list(gathered.chunk(world)), rows.contiguous())
    return gathered


def all_reduce_logsumexp(partial: Float[Tensor, "columns"], world: int) -> Float[Tensor, "columns"]:
    """Return log Σ exp over the processes, each of which holds the log-sum-exp of its part."""
    if world == 1:
        return partial
    largest = partial.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (partial - largest).exp()
    dist.all_reduce(total)
    return total.log() + largest


def reduce_scatter(rows: Float[Tensor, "columns embed"], world: int) -> Float[Tensor, "batch embed"]:
    """Sum the rows over the processes, and return those that belong to this process."""
    if world == 1:
        return rows
    local = rows.new_empty((len(rows) // world, rows.shape[1]))
    dist.reduce_scatter(local, list(rows.chunk(world)))
    return local


class RingShift:
    """A tensor being sent to the next rank of the ring while the previous rank's is received."""

    def __init__(self, rows: Tensor, info: RankInfo, *, tag: int) -> None:
        self._sent, self._received = rows.contiguous(), torch.empty_like(rows, memory_format=torch.contiguous_format)
        following, previous = (info.rank + 1) % info.world, (info.rank - 1) % info.world
        self._requests = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self._sent, following, tag=tag),
                dist.P2POp(dist.irecv, self._received, previous, tag=tag),
            ]
        )

    def wait(self) -> Tensor:
        """Wait for the exchange, and return the previous rank's tensor."""
        for request in self._requests:
            request.wait()
        return self._received
