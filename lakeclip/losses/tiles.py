"""The similarity matrix one tile at a time, so that a loss over batch × batch pairs needs batch × embed memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: Rows and columns of a tile. On a CPU, a tile of 1,024 stays in the cache between the product that makes it and the
#: products that use it. A GPU would spend its time launching kernels for tiles that small.
_TILE_SIZE, _TILE_SIZE_GPU = 1024, 4096
#: A matrix of at most this many entries is kept from the first pass for the second.
_MAX_CACHED_ENTRIES = 2**24


class Tile(NamedTuple):
    """A block of a matrix."""

    rows: slice
    columns: slice
    values: Tensor


class LogitTiles:
    """Iterable over the tiles of scale · images @ textsᵀ.

    Args:
        passes: number of times it will be iterated. In the last pass the caller may overwrite a tile.
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
        self._is_cached = passes > 1 and len(images) * len(texts) <= _MAX_CACHED_ENTRIES
        self._cache: list[Tile] = []

    def __iter__(self) -> Iterator[Tile]:
        if self._cache:
            yield from self._cache
            return
        scaled = self._images[:0]
        for rows, columns in tile_slices(self._images, self._texts):
            if columns.start == 0:
                scaled = self._images[rows] * self._scale
            tile = Tile(rows, columns, scaled @ self._texts[columns].T)
            if self._is_cached:
                self._cache.append(tile)
            yield tile


def fits_one_tile(images: Tensor, texts: Tensor) -> bool:
    """Return True if a single tile covers the matrix."""
    return max(len(images), len(texts)) <= _tile_size(images)


def _tile_size(images: Tensor) -> int:
    return _TILE_SIZE if images.device.type == "cpu" else _TILE_SIZE_GPU


def tile_slices(images: Tensor, texts: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and the columns of each tile, row by row."""
    size = _tile_size(images)
    for top in range(0, len(images), size):
        for left in range(0, len(texts), size):
            yield slice(top, min(top + size, len(images))), slice(left, min(left + size, len(texts)))


def shared_id_mask(
    row_ids: Int[Tensor, "rows keys"], column_ids: Int[Tensor, "columns keys"], diagonal: int
) -> Bool[Tensor, "rows columns"]:
    """Return True for positives: a row and a column that share a nonzero id in the same key, or that are one pair.

    Args:
        diagonal: offset of the diagonal on which a row meets its own pair, as for `torch.diagonal`; outside the matrix
            if no row does.
    """
    mask = torch.zeros(len(row_ids), len(column_ids), dtype=torch.bool, device=row_ids.device)
    mask.diagonal(diagonal).fill_(True)
    for row_key, column_key in zip(row_ids.unbind(1), column_ids.unbind(1), strict=True):
        mask |= (row_key[:, None] == column_key) & (row_key != 0)[:, None]
    return mask


class PrecomputedGrad(torch.autograd.Function):
    """Autograd function of a value whose gradients are already computed; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor) -> Tensor:
        """Return the value. `gradients` are those with respect to `inputs`, in the same order."""
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, each multiplied by the gradient of the value."""
        return None, None, *(gradient * upstream for gradient in ctx.saved_tensors)


def attach_gradients(value: Tensor, gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    """Return `value` with a backward pass that gives each of `inputs` its gradient, in the input's dtype."""
    cast = tuple(gradient.to(x.dtype) for gradient, x in zip(gradients, inputs, strict=True))
    # `Function.apply` is typed in some versions of PyTorch only.
    apply: Any = PrecomputedGrad.apply
    result: Tensor = apply(value, cast, *inputs)
    return result
