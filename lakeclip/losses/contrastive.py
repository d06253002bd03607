"""The contrastive objective of CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3), on one process or many."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy: each image must pick its text out of the global batch, and each text its image.

    Every process compares its own pairs with those of all processes, so none computes the whole similarity matrix
    (section 2.5). The mean of the processes' losses is the loss of the global batch, and so is the mean of the
    gradients that each back-propagates, which is what DistributedDataParallel takes.

    Args:
        image_features: this process's images, unit length. All processes hold equally many.
        text_features: their texts, unit length, in the same order.
        logit_scale: logarithm of the factor on the cosine similarities.
    """
    # Half precision has too few digits for similarities that are scaled up to 100.
    with torch.autocast(image_features.device.type, enabled=False):
        precise = torch.promote_types(image_features.dtype, torch.float32)
        images, texts = image_features.to(precise), text_features.to(precise)
        scale = logit_scale.exp()
        first = len(images) * (dist.get_rank() if _distributed() else 0)
        own = torch.arange(first, first + len(images), device=images.device)
        per_image = F.cross_entropy(scale * images @ gather_features(texts).T, own)
        per_text = F.cross_entropy(scale * texts @ gather_features(images).T, own)
        return (per_image + per_text) / 2


def gather_features(features: Float[Tensor, "batch embed"]) -> Float[Tensor, "global embed"]:
    """The features of all processes in order of rank, with gradients flowing back to the process each came from.

    Every process must hold the same number of rows. Without `torch.distributed` this is the identity.
    """
    if not _distributed():
        return features
    gathered: Tensor = _AllGather.apply(features)  # type: ignore[no-untyped-call]
    return gathered


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _AllGather(torch.autograd.Function):
    """All-gather whose backward sums what every process's loss says about this process's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, features: Tensor) -> Tensor:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
