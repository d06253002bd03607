"""Symmetric cross-entropy over the similarities of a global batch, for any answers, in memory of batch × embed.

Let S = exp(logit_scale) · images @ textsᵀ over the N pairs of the global batch, T_ij the share of image i's answer that
is text j, U_ij the share of text j's answer that is image i, and Q = T + U. With

    row_i = log Σ_j exp S_ij,    column_j = log Σ_i exp S_ij,

the cross-entropies of images over texts and of texts over images are together

    loss = 1/2N · (Σ_i row_i + Σ_j column_j - Σ_ij Q_ij S_ij)
    G_ij = 2N · ∂loss/∂S_ij = exp(S_ij - row_i) + exp(S_ij - column_j) - Q_ij
    ∂loss/∂images = scale/2N · G @ texts,    ∂loss/∂texts = scale/2N · Gᵀ @ images,    ∂loss/∂logit_scale = ΣGS / 2N

So two passes over S do, and each needs one tile of it at a time: the first sums up rows and columns, the second
multiplies G. S is never whole in memory (as FlashAttention does for attention: Dao et al. 2022, arXiv 2205.14135), and
value and gradients come out together.

Of many processes, each takes the rows of its own images against all texts: every entry of S is computed once, in one
place. It gathers the texts, and the column sums and the gradients of the texts are added up over the processes.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lakeclip.losses.exchange import log_sum_exp, sum_for_each
from lakeclip.losses.tiles import Logits, Tile


@runtime_checkable
class Answers(Protocol):
    """Q of the module's head, in the rows of one process's images."""

    def score(self, tile: Tile) -> Tensor:
        """ΣQS of a tile of S."""

    def subtract_from(self, gradient: Tensor, tile: Tile) -> None:
        """Take the part of Q that belongs to a tile off a matrix."""


def cross_entropy(
    images: Float[Tensor, "batch embed"],
    texts: Float[Tensor, "all embed"],
    scale: Float[Tensor, ""],
    answers: Answers,
    own: slice,
    world: int,
    wants_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """This process's part of the loss, and its gradients with respect to its images and its texts.

    The mean of the processes' results is that of the global batch.

    Args:
        images: this process's, unit length, float32 or better.
        texts: of all processes, in order of rank.
        scale: factor on the cosine similarities.
        answers: Q of the module's head.
        own: where this process's texts are among all.
        world: number of processes.
        wants_gradients: otherwise the products are left out, and the features are returned in the gradients' place.
    """
    # Divided by this process's share of the batch, because the processes' results are averaged.
    share = 1 / (2 * len(images))
    logits = Logits(images, texts, scale, passes=1 + wants_gradients)
    row_sums, column_sums, score = images.new_empty(len(images)), images.new_empty(len(texts)), scale.new_zeros(())
    for tile in logits:
        _add_up(row_sums[tile.rows], tile.values, 1, is_first=tile.columns.start == 0)
        _add_up(column_sums[tile.columns], tile.values, 0, is_first=tile.rows.start == 0)
        score += answers.score(tile)
    column_sums = log_sum_exp(column_sums, world)
    loss = (row_sums.sum() + column_sums[own].sum() - score) * share
    if not wants_gradients:
        return loss, images, texts

    image_gradient, text_gradient = torch.empty_like(images), torch.empty_like(texts)
    for tile in logits:
        gradient = torch.sub(tile.values, row_sums[tile.rows, None]).exp_()
        gradient.add_(tile.values.sub_(column_sums[tile.columns]).exp_())
        answers.subtract_from(gradient, tile)
        gradient.mul_(scale * share)
        # A beta of 0 begins the sum.
        image_gradient[tile.rows].addmm_(gradient, texts[tile.columns], beta=int(tile.columns.start > 0))
        text_gradient[tile.columns].addmm_(gradient.T, images[tile.rows], beta=int(tile.rows.start > 0))
    return loss, image_gradient, sum_for_each(text_gradient, world)


def _add_up(sums: Tensor, logits: Tensor, dim: int, *, is_first: bool) -> None:
    """Take a tile into the log-sum-exps over one of its sides."""
    largest = logits.amax(dim, keepdim=True)
    part = (logits - largest).exp_().sum(dim).log_().add_(largest.squeeze(dim))
    if is_first:
        sums.copy_(part)
    else:
        torch.logaddexp(sums, part, out=sums)
