"""Activation checkpointing: activations are recomputed in the backward pass instead of stored (Chen et al. 2016).

CLIP was trained with it (Radford et al. 2021, section 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

#: off: store all activations. selective: store the outputs of matrix products, convolutions and attention, and
#: recompute the cheap operations between them. on: store only the inputs of each block.
Recompute = Literal["off", "selective", "on"]

_aten = torch.ops.aten
_EXPENSIVE = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def maybe_checkpoint(block: Callable[..., Tensor], recompute: Recompute, *inputs: Any) -> Tensor:
    """Call `block`, and store its activations only as far as `recompute` allows."""
    if recompute == "off" or not torch.is_grad_enabled():
        return block(*inputs)
    if recompute == "on":
        output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    else:
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        output = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return output


def set_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Set the checkpointing mode of every submodule that has a `recompute` attribute."""
    for module in model.modules():
        if hasattr(module, "recompute"):
            setattr(module, "recompute", recompute)  # noqa: B010 – mypy takes module attributes for Tensor | Module


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
