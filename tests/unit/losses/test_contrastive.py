"""The contrastive loss: its definition and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lakeclip.losses import contrastive_loss


def pairs(batch: int, embed: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(batch, embed, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float64)
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale


def dense(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Figure 3 of the paper, line by line."""
    logits = images @ texts.T * scale.exp()
    labels = torch.arange(len(images))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_equals_the_papers_figure(batch: int) -> None:
    torch.testing.assert_close(contrastive_loss(*pairs(batch)), dense(*pairs(batch)), rtol=1e-12, atol=1e-12)


def test_gradients_in_float64() -> None:
    inputs = tuple(tensor.requires_grad_() for tensor in pairs(4))
    assert torch.autograd.gradcheck(contrastive_loss, inputs)


def test_random_features_lose_the_logarithm_of_the_batch() -> None:
    images, texts, _ = pairs(256, 512)
    loss = contrastive_loss(images, texts, torch.tensor(0.0, dtype=torch.float64))
    assert float(loss) == pytest.approx(math.log(256), rel=0.01)


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts, scale = pairs(8)
    exact = contrastive_loss(images.bfloat16().double(), texts.bfloat16().double(), scale)
    half = contrastive_loss(images.bfloat16(), texts.bfloat16(), scale.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-5)
