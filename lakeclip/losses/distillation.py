"""Self-distillation: the student learns a teacher's opinion of which images and texts of a batch match.

A caption may describe several images of a batch, and an image may answer to several captions, yet the contrastive
objective calls every pair but the given ones wrong. A teacher, an average of the student itself, says how well the
others match, and the student is asked for its distribution (a soft target) beside the given pairs:

    loss = α · contrastive + (1 - α) · KL(target ‖ student)

Two ways to make the target from the teacher's features v (images) and t (texts):

- `softmax_targets`: the teacher's own softmax (Cheng et al. 2021, arXiv 2104.08945, section 3.2).
- `transport_targets`: an optimal transport between the images and the texts of the batch (OTTER: Wu et al. 2021, arXiv
  2112.09445, section 3.2), at the cost C = -(v·vᵀ + t·tᵀ + v·tᵀ) without the diagonal, which the contrastive part has.
  Everybody gets as much as everybody else, so no caption that suits all images takes all of their targets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lakeclip.losses.cross_entropy import cross_entropy
from lakeclip.losses.exchange import gather, log_sum_exp, place
from lakeclip.losses.tiles import Tile, with_gradients


class Targets(NamedTuple):
    """What the teacher thinks of this process's images and all texts, for every pair two probabilities.

    Attributes:
        of_images: (batch, all), that the image's text is this one; rows sum to 1.
        of_texts: (batch, all), that the text's image is this one; columns sum to 1 over all processes.
    """

    of_images: Float[Tensor, "batch all"]
    of_texts: Float[Tensor, "batch all"]


def distillation_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    targets: Targets,
) -> Float[Tensor, ""]:
    """KL divergence of the student's distributions from the targets: the mean of both directions, 0 where they agree.

    As with `contrastive_loss`, the mean of the processes' losses and gradients is that of the global batch.
    Differentiable once, not with respect to the targets.

    Args:
        image_features: the student's, of this process's images, unit length.
        text_features: of their texts, in the same order.
        logit_scale: logarithm of the factor on the student's similarities, which has its own here.
        targets: of the same pairs.
    """
    inputs = (image_features, text_features, logit_scale)
    wants_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        precise = torch.promote_types(image_features.dtype, torch.float32)
        images, texts = image_features.to(precise), text_features.to(precise)
        rank, world = place(alone=False)
        texts = gather(texts.contiguous(), world)
        own = slice(rank * len(images), (rank + 1) * len(images))
        answers = _Soft((targets.of_images + targets.of_texts).to(precise))
        loss, *features_gradients = cross_entropy(
            images, texts, logit_scale.to(precise).exp(), answers, own, world, wants_gradients
        )
        # Cross-entropy less the targets' own entropy, of which the processes have a part each.
        entropy = torch.special.entr(targets.of_images).sum() + torch.special.entr(targets.of_texts).sum()
        loss = torch.sub(loss, entropy.to(precise) / (2 * len(images)))
        if not wants_gradients:
            return loss
        gradients = (*features_gradients, torch.linalg.vecdot(features_gradients[0], images).sum())
    return with_gradients(loss, gradients, inputs)


def softmax_targets(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
) -> Targets:
    """The teacher's softmax of each image over all texts of the global batch, and of each text over all images.

    Args:
        image_features, text_features: the teacher's, of this process's pairs, unit length.
        logit_scale: the teacher's own.
    """
    images, texts = _precise(image_features), _precise(text_features)
    _, world = place(alone=False)
    logits = logit_scale.detach().to(images.dtype).exp() * images @ gather(texts.contiguous(), world).T
    columns = log_sum_exp(logits.logsumexp(dim=0), world)
    return Targets(logits.softmax(dim=1), (logits - columns).exp())


def transport_targets(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    *,
    epsilon: float = 0.15,
    iterations: int = 5,
) -> Targets:
    """The optimal transport between all images and all texts of the global batch, each pair's own left out.

    For the texts it is solved from their side, so that both directions are treated alike. A global batch of one pair
    has nothing else to be matched with, and its target is itself.

    Args:
        image_features, text_features: the teacher's, of this process's pairs, unit length.
        epsilon: of the entropy that is added. Towards 0 the targets become a matching of one to one, towards infinity
            all alike.
        iterations: of Sinkhorn's algorithm, in both directions each.
    """
    images, texts = _precise(image_features), _precise(text_features)
    rank, world = place(alone=False)
    everyone = gather(torch.cat([images, texts], dim=1), world)
    all_images, all_texts = everyone.chunk(2, dim=1)
    cost = -(images @ all_images.T + texts @ all_texts.T + images @ all_texts.T)
    if len(everyone) > 1:
        cost.diagonal(rank * len(images)).fill_(torch.inf)
    by_rows = sinkhorn(cost, epsilon=epsilon, iterations=iterations, world=world)
    by_columns = sinkhorn(cost, epsilon=epsilon, iterations=iterations, world=world, columns_first=True)
    # The iterations end with the other side, so shares are made whole once more.
    return Targets(by_rows.softmax(dim=1), (by_columns - log_sum_exp(by_columns.logsumexp(dim=0), world)).exp())


def sinkhorn(
    cost: Float[Tensor, "rows columns"],
    *,
    epsilon: float,
    iterations: int,
    world: int = 1,
    columns_first: bool = False,
) -> Float[Tensor, "rows columns"]:
    """The logarithm of the transport plan between as many rows as columns, all of the same weight.

    exp(f_i + g_j - cost_ij / ε), f and g such that rows and columns sum to 1/N: by turns for the one and the other, as
    far as `iterations` go (Sinkhorn 1967; Cuturi 2013, arXiv 1306.0895). In logarithms, where no cost and no ε is too
    large or too small.

    Args:
        cost: this process's rows; infinite where nothing may be transported.
        world: processes that hold the other rows, equally many each.
        columns_first: begin each iteration with the columns, as for the transposed matrix.
    """
    kernel = cost / -epsilon
    weight = -math.log(cost.shape[1])
    f, g = kernel.new_zeros(kernel.shape[0], 1), kernel.new_zeros(kernel.shape[1])

    def fit_rows() -> None:
        torch.sub(weight, (kernel + g).logsumexp(dim=1, keepdim=True), out=f)

    def fit_columns() -> None:
        torch.sub(weight, log_sum_exp((kernel + f).logsumexp(dim=0), world), out=g)

    for _ in range(iterations):
        for fit in (fit_columns, fit_rows) if columns_first else (fit_rows, fit_columns):
            fit()
    return kernel + f + g


class _Soft:
    """Answers that are a whole matrix, rows of this process's images."""

    def __init__(self, answers: Float[Tensor, "batch all"]) -> None:
        self._answers = answers

    def score(self, tile: Tile) -> Tensor:
        """ΣQS of a tile."""
        score: Tensor = torch.linalg.vecdot(self._of(tile), tile.values).sum()
        return score

    def subtract_from(self, gradient: Tensor, tile: Tile) -> None:
        """Take Q of a tile off a matrix."""
        gradient.sub_(self._of(tile))

    def _of(self, tile: Tile) -> Tensor:
        return self._answers[tile.rows, tile.columns]


def _precise(features: Tensor) -> Tensor:
    """Half precision has too few digits for what is divided by ε."""
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))
