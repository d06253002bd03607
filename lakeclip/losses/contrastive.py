"""The contrastive objective of CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3), on one process or many.

It is the symmetric cross-entropy of `cross_entropy.py` for the answers T_ij = 1/|P(i)| for all j in P(i), the right
answers of i. Those are the pair itself, and the rows that share an id with it (all of them right alike, as in UniCL:
Yang et al. 2022, arXiv 2204.03610, section 3.2). With a label smoothing ε,

    Q = (1 - ε)(T + Tᵀ) + 2ε/N
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lakeclip.losses.cross_entropy import cross_entropy
from lakeclip.losses.exchange import gather, pack, place, unpack
from lakeclip.losses.tiles import Tile, fits_a_tile, grid, share_an_id, with_gradients


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
            loss, *features_gradients = cross_entropy(images, texts, scale, answers, own, world, wants_gradients)
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
