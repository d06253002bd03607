"""The contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3), on one process or many.

It is the symmetric cross-entropy of `cross_entropy.py` with the targets T_ij = 1/|P(i)| for every j in P(i), the
positives of image i: its own text, and every row that shares an id with it. All positives weigh the same, as in UniCL
(Yang et al. 2022, arXiv 2204.03610, section 3.2). With label smoothing ε,

    Q = (1 - ε)(T + Tᵀ) + 2ε/N
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lakeclip.losses.cross_entropy import cross_entropy
from lakeclip.losses.distributed import all_gather, pack_features, rank_info, unpack_features
from lakeclip.losses.tiles import Tile, attach_gradients, fits_one_tile, shared_id_mask, tile_slices


def contrastive_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    *,
    positive_ids: Int[Tensor, "batch keys"] | None = None,
    label_smoothing: float = 0.0,
    local_only: bool = False,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of each image over all texts of the global batch, and of each text over all images.

    The mean of the processes' losses is the loss of the global batch, and the mean of their gradients is its gradient,
    as DistributedDataParallel expects. Memory grows with batch × embed. Arithmetic is float32 or better. Differentiable
    once.

    Args:
        image_features: this process's images, unit length. Every process must hold the same number.
        text_features: their texts, unit length, in the same order.
        logit_scale: logarithm of the factor on the cosine similarities.
        positive_ids: hashes. Rows that share one in any column are equal positives of each other; 0 means missing.
        label_smoothing: share of the target that is spread evenly over the global batch, as in `F.cross_entropy`.
        local_only: compare within this process only.
    """
    inputs = (image_features, text_features, logit_scale)
    wants_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    # Half precision has too few digits for similarities that are scaled up to 100.
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        images, texts = image_features.to(dtype), text_features.to(dtype)
        scale = logit_scale.to(dtype).exp()
        rank, world = rank_info(local_only=local_only)
        texts, ids = unpack_features(all_gather(pack_features(texts, positive_ids), world), texts.shape[1])
        if wants_gradients and ids is None and not label_smoothing and world == 1 and fits_one_tile(images, texts):
            loss, *feature_gradients = _single_tile_loss(images, texts, scale)
        else:
            local_rows = slice(rank * len(images), (rank + 1) * len(images))
            targets = _PositiveTargets(images, texts, local_rows, ids, label_smoothing, world)
            loss, *feature_gradients = cross_entropy(images, texts, scale, targets, local_rows, world, wants_gradients)
        if not wants_gradients:
            return loss
        gradients = (*feature_gradients, torch.linalg.vecdot(feature_gradients[0], images).sum())
    return attach_gradients(loss, gradients, inputs)


def _single_tile_loss(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients of images and texts, for one process whose matrix fits one tile."""
    weight = 1 / (2 * len(images))
    logits = images.mul(scale) @ texts.T
    by_row, by_column = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
    loss = (by_row.diagonal() + by_column.diagonal()).sum() * -weight
    gradient = by_row.exp_().add_(by_column.exp_())
    gradient.diagonal().sub_(2)
    gradient.mul_(scale * weight)
    return loss, gradient @ texts, gradient.T @ images


class _PositiveTargets:
    """The matrix Q of the module docstring, for one process's images against all texts.

    Args:
        local_rows: rows of this process's texts among all texts.
        ids: positive ids of all pairs, or None if each pair is its own only positive.
    """

    def __init__(
        self, images: Tensor, texts: Tensor, local_rows: slice, ids: Tensor | None, smoothing: float, world: int
    ) -> None:
        self._first, self._local_ids, self._ids = local_rows.start, None if ids is None else ids[local_rows], ids
        self._positive_weight, self._uniform_weight = 1 - smoothing, 2 * smoothing / len(texts)
        if ids is not None:
            num_positives = images.new_zeros(len(images))
            for rows, columns in tile_slices(images, texts):
                num_positives[rows] += self._positive_mask(rows, columns).sum(dim=1)
            # 1/|P|: sharing an id is symmetric, so row i has as many positives as column i.
            self._column_share = 1 / all_gather(num_positives, world)
            self._row_share = self._column_share[local_rows]

    def score(self, tile: Tile) -> Tensor:
        """Return ΣQS over a tile."""
        if self._ids is not None:
            score = (self._positive_part(tile) * tile.values).sum()
        else:
            score = tile.values.diagonal(self._diagonal(tile)).sum() * (2 * self._positive_weight)
        return score + self._uniform_weight * tile.values.sum() if self._uniform_weight else score

    def subtract_from(self, gradient: Tensor, tile: Tile) -> None:
        """Subtract a tile of Q from a matrix, in place."""
        if self._ids is not None:
            gradient.sub_(self._positive_part(tile))
        else:
            gradient.diagonal(self._diagonal(tile)).sub_(2 * self._positive_weight)
        if self._uniform_weight:
            gradient.sub_(self._uniform_weight)

    def _positive_part(self, tile: Tile) -> Tensor:
        """Return a tile of Q without label smoothing's uniform part."""
        both = self._row_share[tile.rows, None] + self._column_share[tile.columns]
        return both.mul_(self._positive_mask(tile.rows, tile.columns)).mul_(self._positive_weight)

    def _positive_mask(self, rows: slice, columns: slice) -> Tensor:
        assert self._ids is not None
        assert self._local_ids is not None
        return shared_id_mask(self._local_ids[rows], self._ids[columns], self._first + rows.start - columns.start)

    def _diagonal(self, tile: Tile) -> int:
        """Return the offset for `torch.diagonal` at which images meet their own texts; outside the tile if none do."""
        diagonal: int = self._first + tile.rows.start - tile.columns.start
        return diagonal
