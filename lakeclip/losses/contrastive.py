"""The contrastive objective of CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3), on one process or many.

Let S = exp(logit_scale) · images @ textsᵀ over the N pairs of the global batch, and T the answers: T_ij = 1/|P(i)| for
all j in P(i), the right answers of i. Those are the pair itself, and the rows that share an id with it (all of them
right alike, as in UniCL: Yang et al. 2022, arXiv 2204.03610, section 3.2). With

    row_i = log Σ_j exp S_ij,    column_j = log Σ_i exp S_ij,    Q = (1 - ε)(T + Tᵀ) + 2ε/N for a label smoothing ε,

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

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lakeclip.losses.exchange import gather, log_sum_exp, pack, place, sum_for_each, unpack
from lakeclip.losses.tiles import Logits, Tile, fits_a_tile, grid, share_an_id, with_gradients


def contrastive_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    *,
    same: Int[Tensor, "batch keys"] | None = None,
    label_smoothing: float = 0.0,
    alone: bool = False,
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy: each image must pick its text out of the global batch, and each text its image.

    The mean of the processes' losses is the loss of the global batch, and so is the mean of the gradients that each
    back-propagates, which is what DistributedDataParallel takes. Memory grows with batch × embed; arithmetic is float32
    or better. Differentiable once.

    Args:
        image_features: this process's images, unit length. All processes hold equally many.
        text_features: their texts, unit length, in the same order.
        logit_scale: logarithm of the factor on the cosine similarities.
        same: hashes; rows that agree in any column are right answers for each other, evenly. 0 agrees with nothing.
        label_smoothing: share of the answer that is spread evenly over the global batch, as in `F.cross_entropy`.
        alone: compare within this process only.
    """
    inputs = (image_features, text_features, logit_scale)
    wants_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    # Half precision has too few digits for similarities that are scaled up to 100.
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        precise = torch.promote_types(image_features.dtype, torch.float32)
        images, texts = image_features.to(precise), text_features.to(precise)
        scale = logit_scale.to(precise).exp()
        rank, world = place(alone=alone)
        texts, keys = unpack(gather(pack(texts, same), world), texts.shape[1])
        if wants_gradients and keys is None and not label_smoothing and world == 1 and fits_a_tile(images, texts):
            loss, *features_gradients = _at_once(images, texts, scale)
        else:
            own = slice(rank * len(images), (rank + 1) * len(images))
            answers = _Answers(images, texts, own, keys, label_smoothing, world)
            loss, *features_gradients = _in_tiles(images, texts, scale, answers, own, world, wants_gradients)
        if not wants_gradients:
            return loss
        gradients = (*features_gradients, torch.linalg.vecdot(features_gradients[0], images).sum())
    return with_gradients(loss, gradients, inputs)


def _at_once(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plain case, one process whose matrix is one tile: the loss and its gradients of images and of texts."""
    share = 1 / (2 * len(images))
    logits = images.mul(scale) @ texts.T
    by_row, by_column = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    loss = (by_row.diagonal() + by_column.diagonal()).sum() * -share
    gradient = by_row.exp_().add_(by_column.exp_())
    gradient.diagonal().sub_(2)
    gradient.mul_(scale * share)
    return loss, gradient @ texts, gradient.T @ images


def _in_tiles(
    images: Tensor, texts: Tensor, scale: Tensor, answers: _Answers, own: slice, world: int, wants_gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of any matrix, and of this process's part of it; without the products where they are not wanted."""
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


class _Answers:
    """Q of the module's head, for one process's images against all texts.

    Args:
        own: where this process's texts are among all.
        keys: of all pairs, or None where each pair has one answer.
    """

    def __init__(
        self, images: Tensor, texts: Tensor, own: slice, keys: Tensor | None, smoothing: float, world: int
    ) -> None:
        self._first, self._own_keys, self._keys = own.start, None if keys is None else keys[own], keys
        self._certain, self._evenly = 1 - smoothing, 2 * smoothing / len(texts)
        if keys is not None:
            number = images.new_zeros(len(images))
            for rows, columns in grid(images, texts):
                number[rows] += self._agree(rows, columns).sum(dim=1)
            # 1/|P|: agreeing is mutual, so a row has as many answers as its column.
            self._column_share = 1 / gather(number, world)
            self._row_share = self._column_share[own]

    def score(self, tile: Tile) -> Tensor:
        """ΣQS of a tile."""
        if self._keys is not None:
            score = (self._shares(tile) * tile.values).sum()
        else:
            score = tile.values.diagonal(self._diagonal(tile)).sum() * (2 * self._certain)
        return score + self._evenly * tile.values.sum() if self._evenly else score

    def subtract_from(self, gradient: Tensor, tile: Tile) -> None:
        """Take Q of a tile off a matrix."""
        if self._keys is not None:
            gradient.sub_(self._shares(tile))
        else:
            gradient.diagonal(self._diagonal(tile)).sub_(2 * self._certain)
        if self._evenly:
            gradient.sub_(self._evenly)

    def _shares(self, tile: Tile) -> Tensor:
        """What is certain of Q."""
        both = self._row_share[tile.rows, None] + self._column_share[tile.columns]
        return both.mul_(self._agree(tile.rows, tile.columns)).mul_(self._certain)

    def _agree(self, rows: slice, columns: slice) -> Tensor:
        assert self._keys is not None
        assert self._own_keys is not None
        return share_an_id(self._own_keys[rows], self._keys[columns], self._first + rows.start - columns.start)

    def _diagonal(self, tile: Tile) -> int:
        """Where in a tile images meet their own texts, as for `torch.diagonal`; beyond it if they do not."""
        diagonal: int = self._first + tile.rows.start - tile.columns.start
        return diagonal
