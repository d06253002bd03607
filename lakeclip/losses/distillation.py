"""Self-distillation: the student learns from a teacher how well each image and text of a batch match.

A caption may describe several images of a batch, and an image may fit several captions, yet the contrastive loss treats
every pair except the given ones as a negative. A teacher, a moving average of the student, scores all pairs, and the
student learns the teacher's distribution (a soft target) in addition to the given pairs:

    loss = α · contrastive + (1 - α) · KL(target ‖ student)

There are two ways to compute the target from the teacher's features v (images) and t (texts):

- `softmax_targets`: the teacher's own softmax (Cheng et al. 2021, arXiv 2104.08945, section 3.2).
- `transport_targets`: an optimal transport between the images and the texts of the batch (OTTER: Wu et al. 2021, arXiv
  2112.09445, section 3.2), at the cost C = -(v·vᵀ + t·tᵀ + v·tᵀ). The diagonal is left out, because the contrastive
  part covers it. Every image and every text receives the same total mass, so a caption that fits all images cannot take
  all of their targets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lakeclip.losses.cross_entropy import cross_entropy
from lakeclip.losses.distributed import all_gather, all_reduce_logsumexp, rank_info
from lakeclip.losses.tiles import Tile, attach_gradients


class Targets(NamedTuple):
    """The teacher's two probabilities for each pair of one of this process's images and one of all texts.

    Attributes:
        image_to_text: (batch, all), the probability of the text given the image; rows sum to 1.
        text_to_image: (batch, all), the probability of the image given the text; columns sum to 1 over all processes.
    """

    image_to_text: Float[Tensor, "batch all"]
    text_to_image: Float[Tensor, "batch all"]


def distillation_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    targets: Targets,
) -> Float[Tensor, ""]:
    """Return the KL divergence of the student's distributions from the targets, averaged over both directions.

    It is 0 where they agree. As with `contrastive_loss`, the mean of the processes' losses and gradients is that of the
    global batch. Differentiable once, not with respect to the targets.

    Args:
        image_features: the student's features of this process's images, unit length.
        text_features: the student's features of their texts, unit length, in the same order.
        logit_scale: logarithm of the factor on the student's similarities; it may differ from the contrastive part's.
        targets: the teacher's targets for the same pairs.
    """
    inputs = (image_features, text_features, logit_scale)
    wants_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        images, texts = image_features.to(dtype), text_features.to(dtype)
        rank, world = rank_info(local_only=False)
        texts = all_gather(texts.contiguous(), world)
        local_rows = slice(rank * len(images), (rank + 1) * len(images))
        target_matrix = _SoftTargets((targets.image_to_text + targets.text_to_image).to(dtype))
        loss, *feature_gradients = cross_entropy(
            images, texts, logit_scale.to(dtype).exp(), target_matrix, local_rows, world, wants_gradients
        )
        # KL is the cross-entropy minus the entropy of the targets, to which each process contributes its own rows.
        entropy = torch.special.entr(targets.image_to_text).sum() + torch.special.entr(targets.text_to_image).sum()
        loss = torch.sub(loss, entropy.to(dtype) / (2 * len(images)))
        if not wants_gradients:
            return loss
        gradients = (*feature_gradients, torch.linalg.vecdot(feature_gradients[0], images).sum())
    return attach_gradients(loss, gradients, inputs)


def softmax_targets(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
) -> Targets:
    """Return the teacher's softmax of each image over all texts of the global batch, and of each text over all images.

    Args:
        image_features, text_features: the teacher's features of this process's pairs, unit length.
        logit_scale: logarithm of the factor on the teacher's similarities.
    """
    images, texts = _at_least_float32(image_features), _at_least_float32(text_features)
    _, world = rank_info(local_only=False)
    logits = logit_scale.detach().to(images.dtype).exp() * images @ all_gather(texts.contiguous(), world).T
    columns = all_reduce_logsumexp(logits.logsumexp(dim=0), world)
    return Targets(logits.softmax(dim=1), (logits - columns).exp())


def transport_targets(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    *,
    epsilon: float = 0.15,
    iterations: int = 5,
) -> Targets:
    """Return targets from the optimal transport between all images and texts of the global batch, without the diagonal.

    The plan is solved twice, once starting from the rows and once from the columns, so that both directions are treated
    alike. The target of a global batch of one pair is that pair.

    Args:
        image_features, text_features: the teacher's features of this process's pairs, unit length.
        epsilon: weight of the entropy. Towards 0 the targets become a one-to-one matching, towards infinity uniform.
        iterations: Sinkhorn iterations, for each of the two directions.
    """
    images, texts = _at_least_float32(image_features), _at_least_float32(text_features)
    rank, world = rank_info(local_only=False)
    gathered = all_gather(torch.cat([images, texts], dim=1), world)
    all_images, all_texts = gathered.chunk(2, dim=1)
    cost = -(images @ all_images.T + texts @ all_texts.T + images @ all_texts.T)
    if len(gathered) > 1:
        cost.diagonal(rank * len(images)).fill_(torch.inf)
    by_rows = sinkhorn(cost, epsilon=epsilon, iterations=iterations, world=world)
    by_columns = sinkhorn(cost, epsilon=epsilon, iterations=iterations, world=world, columns_first=True)
    # The last half-iteration scaled the other side, so normalise once more.
    return Targets(
        by_rows.softmax(dim=1), (by_columns - all_reduce_logsumexp(by_columns.logsumexp(dim=0), world)).exp()
    )


def sinkhorn(
    cost: Float[Tensor, "rows columns"],
    *,
    epsilon: float,
    iterations: int,
    world: int = 1,
    columns_first: bool = False,
) -> Float[Tensor, "rows columns"]:
    """Return the logarithm of the transport plan between N rows and N columns of equal weight.

    The plan is exp(f_i + g_j - cost_ij / ε). Each iteration sets f so that the rows sum to 1/N, then g so that the
    columns do (Sinkhorn 1967; Cuturi 2013, arXiv 1306.0895). Computed in logarithms, so that no cost and no ε
    overflows.

    Args:
        cost: this process's rows; infinite where nothing may be transported.
        epsilon: weight of the entropy.
        iterations: number of updates of f and g.
        world: number of processes; each holds equally many rows.
        columns_first: update g before f, which equals transposing the matrix.
    """
    kernel = cost / -epsilon
    weight = -math.log(cost.shape[1])
    f, g = kernel.new_zeros(kernel.shape[0], 1), kernel.new_zeros(kernel.shape[1])

    def fit_rows() -> None:
        torch.sub(weight, (kernel + g).logsumexp(dim=1, keepdim=True), out=f)

    def fit_columns() -> None:
        torch.sub(weight, all_reduce_logsumexp((kernel + f).logsumexp(dim=0), world), out=g)

    for _ in range(iterations):
        for fit in (fit_columns, fit_rows) if columns_first else (fit_rows, fit_columns):
            fit()
    return kernel + f + g


class _SoftTargets:
    """A target matrix that is given entry by entry, in the rows of this process's images."""

    def __init__(self, matrix: Float[Tensor, "batch all"]) -> None:
        self._matrix = matrix

    def score(self, tile: Tile) -> Tensor:
        """Return ΣQS over a tile."""
        score: Tensor = torch.linalg.vecdot(self._block(tile), tile.values).sum()
        return score

    def subtract_from(self, gradient: Tensor, tile: Tile) -> None:
        """Subtract a tile of Q from a matrix, in place."""
        gradient.sub_(self._block(tile))

    def _block(self, tile: Tile) -> Tensor:
        return self._matrix[tile.rows, tile.columns]


def _at_least_float32(features: Tensor) -> Tensor:
    """Detach features and cast them to float32 or better: half precision has too few digits to be divided by ε."""
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))
