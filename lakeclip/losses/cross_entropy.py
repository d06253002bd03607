"""Symmetric cross-entropy over the similarities of a global batch, for any targets, in memory of batch × embed.

Let S = exp(logit_scale) · images @ textsᵀ over the N pairs of the global batch, T_ij the target probability of text j
for image i, U_ij the target probability of image i for text j, and Q = T + U. With

    row_i = log Σ_j exp S_ij,    column_j = log Σ_i exp S_ij,

the cross-entropies of images over texts and of texts over images are together

    loss = 1/2N · (Σ_i row_i + Σ_j column_j - Σ_ij Q_ij S_ij)
    G_ij = 2N · ∂loss/∂S_ij = exp(S_ij - row_i) + exp(S_ij - column_j) - Q_ij
    ∂loss/∂images = scale/2N · G @ texts,    ∂loss/∂texts = scale/2N · Gᵀ @ images,    ∂loss/∂logit_scale = ΣGS / 2N

So two passes over S are enough, and each needs one tile at a time: the first computes the log-sum-exps of rows and
columns, the second multiplies with G. S is never in memory as a whole (as in FlashAttention: Dao et al. 2022, arXiv
2205.14135), and the value and its gradients are computed together.

Each of several processes takes the rows of its own images against all texts, so every entry of S is computed once, on
one process. Texts are gathered; the column sums and the gradients of the texts are summed over the processes.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lakeclip.losses.distributed import all_reduce_logsumexp, reduce_scatter
from lakeclip.losses.tiles import LogitTiles, Tile


@runtime_checkable
class TargetMatrix(Protocol):
    """The matrix Q of the module docstring: the rows of one process's images."""

    def score(self, tile: Tile) -> Tensor:
        """Return ΣQS over a tile of S."""

    def subtract_from(self, gradient: Tensor, tile: Tile) -> None:
        """Subtract the tile of Q that matches `tile` from a matrix, in place."""


def cross_entropy(
    images: Float[Tensor, "batch embed"],
    texts: Float[Tensor, "all embed"],
    scale: Float[Tensor, ""],
    targets: TargetMatrix,
    local_rows: slice,
    world: int,
    wants_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return this process's part of the loss, and its gradients with respect to its images and its texts.

    The mean over the processes is the loss of the global batch.

    Args:
        images: this process's images, unit length, float32 or better.
        texts: texts of all processes, in order of rank.
        scale: factor on the cosine similarities.
        targets: the matrix Q of the module docstring.
        local_rows: rows of this process's texts among all texts.
        world: number of processes.
        wants_gradients: if False, skip the gradients and return the features in their place.
    """
    # Divided by this process's share of the batch, because the processes' results are averaged.
    weight = 1 / (2 * len(images))
    logits = LogitTiles(images, texts, scale, passes=1 + wants_gradients)
    row_lse, column_lse, score = images.new_empty(len(images)), images.new_empty(len(texts)), scale.new_zeros(())
    for tile in logits:
        _accumulate_logsumexp(row_lse[tile.rows], tile.values, 1, is_first=tile.columns.start == 0)
        _accumulate_logsumexp(column_lse[tile.columns], tile.values, 0, is_first=tile.rows.start == 0)
        score += targets.score(tile)
    column_lse = all_reduce_logsumexp(column_lse, world)
    loss = (row_lse.sum() + column_lse[local_rows].sum() - score) * weight
    if not wants_gradients:
        return loss, images, texts

    image_gradient, text_gradient = torch.empty_like(images), torch.empty_like(texts)
    for tile in logits:
        gradient = torch.sub(tile.values, row_lse[tile.rows, None]).exp_()
        gradient.add_(tile.values.sub_(column_lse[tile.columns]).exp_())
        targets.subtract_from(gradient, tile)
        gradient.mul_(scale * weight)
        # beta=0 overwrites the uninitialised memory on the first tile.
        image_gradient[tile.rows].addmm_(gradient, texts[tile.columns], beta=int(tile.columns.start > 0))
        text_gradient[tile.columns].addmm_(gradient.T, images[tile.rows], beta=int(tile.rows.start > 0))
    return loss, image_gradient, reduce_scatter(text_gradient, world)


def _accumulate_logsumexp(total: Tensor, logits: Tensor, dim: int, *, is_first: bool) -> None:
    """Add a tile to the running log-sum-exps along one of its dimensions."""
    largest = logits.amax(dim, keepdim=True)
    part = (logits - largest).exp_().sum(dim).log_().add_(largest.squeeze(dim))
    if is_first:
        total.copy_(part)
    else:
        torch.logaddexp(total, part, out=total)
