"""Gradient checkpointing: activations computed again in the backward pass instead of kept (Chen et al. 2016).

The paper trained with it (Radford et al. 2021, section 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

#: off: all are kept. selective: what matrix products, convolutions and attention give is kept, and the cheap rest
#: between them computed again. on: only what enters a block is kept.
Recompute = Literal["off", "selective", "on"]

_aten = torch.ops.aten
_COSTLY = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def recomputed(block: Callable[..., Tensor], recompute: Recompute, *inputs: Any) -> Tensor:
    """What `block` makes of the inputs; its activations are kept only as far as `recompute` says."""
    if recompute == "off" or not torch.is_grad_enabled():
        return block(*inputs)
    if recompute == "on":
        output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    else:
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        output = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return output


def set_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Let every part of a model that knows how compute its activations again, or keep them."""
    for part in model.modules():
        if hasattr(part, "recompute"):
            setattr(part, "recompute", recompute)  # noqa: B010 – a module's attributes have no types


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
