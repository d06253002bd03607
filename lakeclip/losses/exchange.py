"""What processes tell each other of their pairs. Alone, a process asks nobody. All hold equally many pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


class Place(NamedTuple):
    """This process among those that train together."""

    rank: int
    world: int


def place(*, alone: bool) -> Place:
    """Where this process stands; by itself if it is to compare its pairs with its own only."""
    if alone or not (dist.is_available() and dist.is_initialized()):
        return Place(0, 1)
    return Place(dist.get_rank(), dist.get_world_size())


def pack(features: Float[Tensor, "batch embed"], same: Int[Tensor, "batch keys"] | None) -> Tensor:
    """Features and keys as one tensor, so that they travel in one message: the keys' bits stand beside the features."""
    if same is None:
        return features.contiguous()
    return torch.cat([features, same.to(torch.int64).contiguous().view(features.dtype)], dim=1)


def unpack(packed: Tensor, embed: int) -> tuple[Tensor, Tensor | None]:
    """The features and the keys again."""
    if packed.shape[1] == embed:
        return packed, None
    return packed[:, :embed].contiguous(), packed[:, embed:].contiguous().view(torch.int64)


def gather(rows: Tensor, world: int) -> Tensor:
    """The rows of all processes, in order of rank."""
    if world == 1:
        return rows
    everyone = rows.new_empty((world * len(rows), *rows.shape[1:]))
    dist.all_gather(list(everyone.chunk(world)), rows.contiguous())
    return everyone


def log_sum_exp(partial: Float[Tensor, "columns"], world: int) -> Float[Tensor, "columns"]:
    """log Σ exp over the processes, each of which has the log-sum-exp of its part."""
    if world == 1:
        return partial
    largest = partial.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (partial - largest).exp()
    dist.all_reduce(total)
    return total.log() + largest


def sum_for_each(rows: Float[Tensor, "columns embed"], world: int) -> Float[Tensor, "batch embed"]:
    """The processes' sums; each gets the rows that are its own."""
    if world == 1:
        return rows
    own = rows.new_empty((len(rows) // world, rows.shape[1]))
    dist.reduce_scatter(own, list(rows.chunk(world)))
    return own


class Passing:
    """A tensor on its way to the next process of the ring, while the previous one's comes in."""

    def __init__(self, rows: Tensor, to: Place, *, tag: int) -> None:
        self._sent, self._coming = rows.contiguous(), torch.empty_like(rows, memory_format=torch.contiguous_format)
        onwards, behind = (to.rank + 1) % to.world, (to.rank - 1) % to.world
        self._messages = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self._sent, onwards, tag=tag),
                dist.P2POp(dist.irecv, self._coming, behind, tag=tag),
            ]
        )

    def arrived(self) -> Tensor:
        """What the previous process passed on, once it is here."""
        for message in self._messages:
            message.wait()
        return self._coming
