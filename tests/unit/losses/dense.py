"""The objectives by their definitions, over the whole similarity matrix: what the streamed ones must equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def pairs(batch: int, embed: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-length images and texts, and a logit scale, in float64."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(batch, embed, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float64)
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale


def keys(batch: int, *, seed: int = 0) -> Tensor:
    """Two columns of ids, large and of both signs, in which many rows agree and some are missing (0)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0, 1, -1, 2**62, -(2**62), 0x7FF0_0000_0000_0001], dtype=torch.int64)
    return values[torch.randint(len(values), (batch, 2), generator=generator)]


def right_answers(same: Tensor | None, batch: int) -> Tensor:
    """(batch, batch) of ones where a row is a right answer for another."""
    right = torch.eye(batch, dtype=torch.float64)
    if same is not None:
        for i in range(batch):
            for j in range(batch):
                if any(a == b != 0 for a, b in zip(same[i].tolist(), same[j].tolist(), strict=True)):
                    right[i, j] = 1
    return right


def dense_softmax(
    images: Tensor, texts: Tensor, scale: Tensor, same: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Figure 3 of the paper, line by line, with all right answers alike."""
    logits = images @ texts.T * scale.exp()
    right = right_answers(same, len(images))
    target = right / right.sum(dim=1, keepdim=True)
    both = (F.cross_entropy(side, target, label_smoothing=label_smoothing) for side in (logits, logits.T))
    return sum(both, torch.zeros(())) / 2


def dense_sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, same: Tensor | None = None) -> Tensor:
    """Algorithm 1 of SigLIP, with 1 in the labels for every right answer."""
    logits = images @ texts.T * scale.exp() + bias
    labels = 2 * right_answers(same, len(images)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


def dense_distillation(images: Tensor, texts: Tensor, logit_scale: Tensor, by_image: Tensor, by_text: Tensor) -> Tensor:
    """KL of the student from given targets: by_image's rows and by_text's columns sum to 1; both [image, text]."""
    logits = logit_scale.exp() * images @ texts.T
    return (
        F.kl_div(logits.log_softmax(dim=1), by_image, reduction="sum")
        + F.kl_div(logits.log_softmax(dim=0), by_text, reduction="sum")
    ) / (2 * len(images))


def dense_transport(images: Tensor, texts: Tensor, epsilon: float, iterations: int) -> tuple[Tensor, Tensor]:
    """OTTER's targets as its formulas say them, not in logarithms."""
    targets = []
    for cross in (images @ texts.T, texts @ images.T):
        cost = -(images @ images.T + texts @ texts.T + cross)
        plan = torch.exp(-cost / epsilon) * (1 - torch.eye(len(images), dtype=images.dtype))
        for _ in range(iterations):
            plan = plan / plan.sum(dim=1, keepdim=True) / len(images)
            plan = plan / plan.sum(dim=0, keepdim=True) / len(images)
        targets.append(plan / plan.sum(dim=1, keepdim=True))
    return targets[0], targets[1].T
