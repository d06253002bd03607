"""The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, section 3.2), on one process or many.

Each image-text pair is a binary classification. With S_ij = exp(logit_scale) · image_i · text_j + bias, and z_ij = 1
for positives and -1 for all others,

    loss = -1/N · Σ_ij log σ(z_ij S_ij)  =  1/N · (Σ_ij softplus(S_ij) - Σ_positives S_ij)
    G_ij = N · ∂loss/∂S_ij = σ(S_ij) - [ij is positive]
    ∂loss/∂images = scale/N · G @ texts,    ∂loss/∂texts = scale/N · Gᵀ @ images,    ∂loss/∂bias = ΣG / N

No entry of S needs a sum over its row first, so one pass over the tiles of S is enough. And no process needs all texts
at once: the texts are sent around a ring (the paper's figure 1) together with their accumulated gradients, which are
complete when they are back at their own process.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lakeclip.losses.distributed import RingShift, pack_features, rank_info, unpack_features
from lakeclip.losses.tiles import LogitTiles, attach_gradients, shared_id_mask

#: Tags of the messages around the ring.
_TEXTS, _GRADIENTS = 1, 2


def sigmoid_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    positive_ids: Int[Tensor, "batch keys"] | None = None,
    local_only: bool = False,
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy summed over all image-text pairs of the global batch, divided by the batch size.

    The mean of the processes' losses is the loss of the global batch. Gradients, memory and precision are as with
    `contrastive_loss`.

    Args:
        image_features: this process's images, unit length. Every process must hold the same number.
        text_features: their texts, unit length, in the same order.
        logit_scale: logarithm of the factor on the cosine similarities.
        logit_bias: added to the scaled similarities, because most pairs are negatives.
        positive_ids: hashes. Rows that share one in any column are positives of each other; 0 means missing.
        local_only: compare within this process only.
    """
    inputs = (image_features, text_features, logit_scale, logit_bias)
    wants_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    # Half precision has too few digits for similarities that are scaled up to 100.
    with torch.no_grad(), torch.autocast(image_features.device.type, enabled=False):
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        images, ring_texts = image_features.to(dtype), pack_features(text_features.to(dtype), positive_ids)
        batch, embed = images.shape
        scale, bias = logit_scale.to(dtype).exp(), logit_bias.to(dtype)
        info = rank_info(local_only=local_only)
        loss, bias_gradient = bias.new_zeros(()), bias.new_zeros(())
        image_gradient, ring_gradient = torch.zeros_like(images), torch.zeros_like(images)
        for hop in range(info.world):
            shift = RingShift(ring_texts, info, tag=_TEXTS) if hop < info.world - 1 else None
            texts, text_ids = unpack_features(ring_texts, embed)
            for rows, columns, logits in LogitTiles(images, texts, scale, passes=1):
                logits += bias
                positives = _positive_mask(positive_ids, text_ids, rows, columns, is_local=hop == 0, like=logits)
                loss -= F.logsigmoid(-logits).sum()
                if positives is not None:
                    loss -= logits.mul(positives).sum()
                if wants_gradients:
                    gradient = logits.sigmoid_()
                    if positives is not None:
                        gradient -= positives.to(dtype)
                    bias_gradient += gradient.sum()
                    image_gradient[rows].addmm_(gradient, texts[columns])
                    ring_gradient[columns].addmm_(gradient.T, images[rows])
            if wants_gradients and info.world > 1:
                ring_gradient = RingShift(ring_gradient, info, tag=_GRADIENTS).wait()
            if shift is not None:
                ring_texts = shift.wait()
        # Divided by this process's share of the batch, because the processes' results are averaged.
        loss /= batch
        if not wants_gradients:
            return loss
        scale_gradient = scale / batch * torch.linalg.vecdot(image_gradient, images).sum()
        feature_gradients = (image_gradient.mul_(scale / batch), ring_gradient.mul_(scale / batch))
        gradients = (*feature_gradients, scale_gradient, bias_gradient / batch)
    return attach_gradients(loss, gradients, inputs)


def _positive_mask(
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    rows: slice,
    columns: slice,
    *,
    is_local: bool,
    like: Tensor,
) -> Tensor | None:
    """Return the mask of a tile's positives, or None if it has none.

    Args:
        is_local: True if the texts are those of this process's images, so that row i belongs to column i.
        like: a tensor of the tile's size, on its device.
    """
    on_diagonal = is_local and rows == columns
    if image_ids is None or text_ids is None:
        return torch.eye(len(like), dtype=torch.bool, device=like.device) if on_diagonal else None
    return shared_id_mask(image_ids[rows], text_ids[columns], 0 if on_diagonal else columns.stop)
