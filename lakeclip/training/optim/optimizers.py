"""AdamW with the paper's hyperparameters and parameter groups (Radford et al. 2021, section 2.5 and table 19)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lakeclip.config.schema import OptimizerConfig
from lakeclip.models.clip import CLIP
from lakeclip.models.layers import IMAGE_TOWER_PREFIXES
from lakeclip.training.optim.eight_bit import BLOCK_SIZE, eight_bit_adamw
from lakeclip.training.optim.rounded_adamw import RoundedAdamW

_PAPER_LR = {
    "RN50": 5e-4,
    "RN101": 5e-4,
    "RN50x4": 5e-4,
    "RN50x16": 4e-4,
    "RN50x64": 3.6e-4,
    "ViT-B/32": 5e-4,
    "ViT-B/16": 5e-4,
    "ViT-L/14": 4e-4,
    "ViT-L/14-336px": 2e-5,
}
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def with_paper_values(config: OptimizerConfig, model: str, *, is_resnet: bool) -> OptimizerConfig:
    """Fill in the values that the configuration leaves open with the paper's for this model or kind of tower."""
    return replace(
        config,
        lr=config.lr if config.lr is not None else _PAPER_LR.get(model, 5e-4),
        betas=config.betas or ((0.9, 0.999) if is_resnet else (0.9, 0.98)),
        eps=config.eps if config.eps is not None else (1e-8 if is_resnet else 1e-6),
    )


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into two groups: weights, with decay, and gains, biases and scalars, without."""
    without_decay = {
        id(parameter)
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(part, _NORMS) or name.endswith("bias") or parameter.ndim == 0
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) not in without_decay], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in without_decay], "weight_decay": 0.0},
    ]


def state_bytes(config: OptimizerConfig) -> float:
    """Return the bytes per parameter of Adam's two running averages."""
    return {"32": 8.0, "bf16": 4.0, "8bit": 2 * (1 + 4 / BLOCK_SIZE)}[config.states]


def store_text_in_bfloat16(model: CLIP) -> None:
    """Convert the weights of the text tower to bfloat16, as in the paper; it then computes in bfloat16 too.

    The image tower and the scalars of the loss stay in float32. `adamw` rounds the updates stochastically.
    """
    for name, parameter in model.named_parameters():
        if not name.startswith(IMAGE_TOWER_PREFIXES) and parameter.ndim:
            parameter.data = parameter.data.to(torch.bfloat16)


def adamw(module: nn.Module, config: OptimizerConfig, *, seed: int = 0) -> torch.optim.Optimizer:
    """Create AdamW for a module's trainable parameters, in the groups of `parameter_groups`.

    Arguments and errors are those of `adamw_from_groups`.
    """
    return adamw_from_groups(parameter_groups(module, config.weight_decay), config, seed=seed)


def adamw_from_groups(groups: list[dict[str, Any]], config: OptimizerConfig, *, seed: int = 0) -> torch.optim.Optimizer:
    """Create AdamW for groups of parameters; PyTorch's fused implementation if everything is float32.

    Args:
        groups: parameter groups, as `parameter_groups` returns them.
        config: complete, as `with_paper_values` returns it.
        seed: seed of stochastic rounding, the same in every process.

    Raises:
        ConfigError: 8-bit states were requested, but torchao is not installed.
    """
    assert config.lr is not None
    assert config.betas is not None
    assert config.eps is not None
    lr, betas, eps = config.lr, config.betas, config.eps
    if config.states == "8bit":
        return eight_bit_adamw(groups, lr=lr, betas=betas, eps=eps)
    if config.states == "bf16" or any(p.dtype == torch.bfloat16 for group in groups for p in group["params"]):
        return RoundedAdamW(
            groups,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=config.weight_decay,
            state_dtype=torch.bfloat16 if config.states == "bf16" else None,
            seed=seed,
        )
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
