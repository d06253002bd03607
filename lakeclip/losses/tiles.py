"""The similarity matrix a tile at a time: what lets a loss over batch × batch pairs live in batch × dim memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: Side of a tile. On a CPU it stays in the cache between the product that makes it and the products that use it; a GPU
#: would spend its time on starting so small ones.
_SIDE, _SIDE_GPU = 1024, 4096
#: A matrix of at most so many entries is kept from the first pass for the second.
_KEPT = 2**24


class Tile(NamedTuple):
    """A part of a matrix."""

    rows: slice
    columns: slice
    values: Tensor


class Logits:
    """scale · images @ textsᵀ, tile by tile, as often as it is iterated.

    Args:
        passes: how often it will be; the last time, a tile may be overwritten by whoever gets it.
    """

    def __init__(
        self,
        images: Float[Tensor, "rows embed"],
        texts: Float[Tensor, "columns embed"],
        scale: Float[Tensor, ""],
        *,
        passes: int,
    ) -> None:
        self._images, self._texts, self._scale = images, texts, scale
        self._is_kept = passes > 1 and len(images) * len(texts) <= _KEPT
        self._kept: list[Tile] = []

    def __iter__(self) -> Iterator[Tile]:
        if self._kept:
            yield from self._kept
            return
        scaled = self._images[:0]
        for rows, columns in grid(self._images, self._texts):
            if columns.start == 0:
                scaled = self._images[rows] * self._scale
            tile = Tile(rows, columns, scaled @ self._texts[columns].T)
            if self._is_kept:
                self._kept.append(tile)
            yield tile


def fits_a_tile(images: Tensor, texts: Tensor) -> bool:
    """Whether one tile is the whole matrix."""
    return max(len(images), len(texts)) <= _side(images)


def _side(images: Tensor) -> int:
    return _SIDE if images.device.type == "cpu" else _SIDE_GPU


def grid(images: Tensor, texts: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each tile, row by row."""
    side = _side(images)
    for top in range(0, len(images), side):
        for left in range(0, len(texts), side):
            yield slice(top, min(top + side, len(images))), slice(left, min(left + side, len(texts)))


def share_an_id(
    own: Int[Tensor, "rows keys"], others: Int[Tensor, "columns keys"], diagonal: int
) -> Bool[Tensor, "rows columns"]:
    """Which pairs are right answers for each other: they agree in some key that is not 0, or are the same pair.

    Args:
        diagonal: where the same pairs stand, as for `torch.diagonal`; beyond the matrix for nowhere.
    """
    found = torch.zeros(len(own), len(others), dtype=torch.bool, device=own.device)
    found.diagonal(diagonal).fill_(True)
    for mine, theirs in zip(own.unbind(1), others.unbind(1), strict=True):
        found |= (mine[:, None] == theirs) & (mine != 0)[:, None]
    return found


class Known(torch.autograd.Function):
    """A value whose gradients were computed together with it: what is left for backward is a product."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        """The value. `gradients` are those with respect to `inputs`, in their order."""
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, each times the gradient of the value."""
        return None, None, *(gradient * upstream for gradient in ctx.saved_tensors)


def with_gradients(value: Tensor, gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    """`value` as if autograd had derived it from `inputs`; each gradient in its input's dtype."""
    fitting = tuple(gradient.to(x.dtype) for gradient, x in zip(gradients, inputs, strict=True))
    # Typed in some versions of PyTorch, and not in others.
    apply: Any = Known.apply
    result: Tensor = apply(value, fitting, *inputs)
    return result
