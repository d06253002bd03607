"""Reference losses over the whole similarity matrix, written as their definitions; the tiled losses must equal them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def random_pairs(batch: int, embed: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit-length image and text features and a logit scale, in float64."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(batch, embed, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float64)
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale


def random_ids(batch: int, *, seed: int = 0) -> Tensor:
    """Return two columns of ids, large and of both signs. Many rows share an id, and some ids are missing (0)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0, 1, -1, 2**62, -(2**62), 0x7FF0_0000_0000_0001], dtype=torch.int64)
    return values[torch.randint(len(values), (batch, 2), generator=generator)]


def positive_matrix(positive_ids: Tensor | None, batch: int) -> Tensor:
    """Return a (batch, batch) matrix with 1 where one row is a positive of another, and 0 elsewhere."""
    positives = torch.eye(batch, dtype=torch.float64)
    if positive_ids is not None:
        for i in range(batch):
            for j in range(batch):
                if any(a == b != 0 for a, b in zip(positive_ids[i].tolist(), positive_ids[j].tolist(), strict=True)):
                    positives[i, j] = 1
    return positives


def dense_softmax(
    images: Tensor, texts: Tensor, scale: Tensor, positive_ids: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Compute figure 3 of the CLIP paper line by line, with equal targets for all positives."""
    logits = images @ texts.T * scale.exp()
    positives = positive_matrix(positive_ids, len(images))
    target = positives / positives.sum(dim=1, keepdim=True)
    losses = (F.cross_entropy(side, target, label_smoothing=label_smoothing) for side in (logits, logits.T))
    return sum(losses, torch.zeros(())) / 2


def dense_sigmoid(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, positive_ids: Tensor | None = None
) -> Tensor:
    """Compute algorithm 1 of the SigLIP paper, with the label 1 for every positive."""
    logits = images @ texts.T * scale.exp() + bias
    labels = 2 * positive_matrix(positive_ids, len(images)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


def dense_distillation(images: Tensor, texts: Tensor, logit_scale: Tensor, by_image: Tensor, by_text: Tensor) -> Tensor:
    """Compute the KL divergence from given targets [image, text]: by_image's rows and by_text's columns sum to 1."""
    logits = logit_scale.exp() * images @ texts.T
    return (
        F.kl_div(logits.log_softmax(dim=1), by_image, reduction="sum")
        + F.kl_div(logits.log_softmax(dim=0), by_text, reduction="sum")
    ) / (2 * len(images))


def dense_transport(images: Tensor, texts: Tensor, epsilon: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Compute OTTER's targets by the paper's formulas, without logarithms."""
    targets = []
    for cross in (images @ texts.T, texts @ images.T):
        cost = -(images @ images.T + texts @ texts.T + cross)
        plan = torch.exp(-cost / epsilon) * (1 - torch.eye(len(images), dtype=images.dtype))
        for _ in range(iterations):
            plan = plan / plan.sum(dim=1, keepdim=True) / len(images)
            plan = plan / plan.sum(dim=0, keepdim=True) / len(images)
        targets.append(plan / plan.sum(dim=1, keepdim=True))
    return targets[0], targets[1].T
