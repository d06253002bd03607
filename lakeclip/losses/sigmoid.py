"""The sigmoid objective of SigLIP (Zhai et al. 2023, arXiv 2303.15343, section 3.2), on one process or many.

Every image is asked of every text whether they belong together: with S_ij = exp(logit_scale) · image_i · text_j + bias
and z_ij = 1 for right answers and -1 for all others,

    loss = -1/N · Σ_ij log σ(z_ij S_ij)  =  1/N · (Σ_ij softplus(S_ij) - Σ_right S_ij)
    G_ij = N · ∂loss/∂S_ij = σ(S_ij) - [ij is right]
    ∂loss/∂images = scale/N · G @ texts,    ∂loss/∂texts = scale/N · Gᵀ @ images,    ∂loss/∂bias = ΣG / N

No sum over a row is needed before the others can be computed, so one pass over S does, a tile at a time. And no process
needs all texts at once: they go round in a ring (the paper's figure 1), each with the gradient that it has gathered,
which is complete when it comes home.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lakeclip.losses.exchange import Passing, pack, place, unpack
from lakeclip.losses.tiles import Logits, share_an_id, with_gradients

_TEXTS, _GRADIENTS = 1, 2


def sigmoid_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    same: Int[Tensor, "batch keys"] | None = None,
    alone: bool = False,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of every image with every text of the global batch, summed, and divided by the batch.

    The processes' mean is the loss of the global batch, as with `contrastive_loss`; so are memory and precision.

    Args:
        image_features: this process's images, unit length. All processes hold equally many.
        text_features: their texts, unit length, in the same order.
        logit_scale: logarithm of the factor on the cosine similarities.
        logit_bias: added to the scaled similarities, since most pairs are wrong.
        same: hashes; rows that agree in any column are right answers for each other. 0 agrees with nothing.
        alone: compare within this process only.
    """
    inputs = (image_features, text_features, logit_scale, logit_bias)
    wants_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    # Half precision has too few digits for similarities that are scaled up to 100.
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        precise = torch.promote_types(image_features.dtype, torch.float32)
        images, visitors = image_features.to(precise), pack(text_features.to(precise), same)
        batch, embed = images.shape
        scale, bias = logit_scale.to(precise).exp(), logit_bias.to(precise)
        here = place(alone=alone)
        loss, bias_gradient = bias.new_zeros(()), bias.new_zeros(())
        image_gradient, visitors_gradient = torch.zeros_like(images), torch.zeros_like(images)
        for hop in range(here.world):
            passing = Passing(visitors, here, tag=_TEXTS) if hop < here.world - 1 else None
            texts, keys = unpack(visitors, embed)
            for rows, columns, logits in Logits(images, texts, scale, passes=1):
                logits += bias
                right = _right(same, keys, rows, columns, is_own=hop == 0, like=logits)
                loss -= F.logsigmoid(-logits).sum()
                if right is not None:
                    loss -= logits.mul(right).sum()
                if wants_gradients:
                    gradient = logits.sigmoid_()
                    if right is not None:
                        gradient -= right.to(precise)
                    bias_gradient += gradient.sum()
                    image_gradient[rows].addmm_(gradient, texts[columns])
                    visitors_gradient[columns].addmm_(gradient.T, images[rows])
            if wants_gradients and here.world > 1:
                visitors_gradient = Passing(visitors_gradient, here, tag=_GRADIENTS).arrived()
            if passing is not None:
                visitors = passing.arrived()
        # Divided by this process's share of the batch, because the processes' results are averaged.
        loss /= batch
        if not wants_gradients:
            return loss
        scale_gradient = scale / batch * torch.linalg.vecdot(image_gradient, images).sum()
        features = (image_gradient.mul_(scale / batch), visitors_gradient.mul_(scale / batch))
        gradients = (*features, scale_gradient, bias_gradient / batch)
    return with_gradients(loss, gradients, inputs)


def _right(
    same: Tensor | None, keys: Tensor | None, rows: slice, columns: slice, *, is_own: bool, like: Tensor
) -> Tensor | None:
    """Which pairs of a tile belong together; None if none can.

    Args:
        is_own: the texts are those of this process's images, so that row i belongs to column i.
    """
    here = is_own and rows == columns
    if same is None or keys is None:
        return torch.eye(len(like), dtype=torch.bool, device=like.device) if here else None
    return share_an_id(same[rows], keys[columns], 0 if here else columns.stop)
