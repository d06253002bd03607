"""Adam with decoupled weight decay, as the paper used it (Radford et al. 2021, section 2.5 and table 19)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lakeclip.config.schema import OptimizerConfig
from lakeclip.models.clip import CLIP
from lakeclip.training.adam.eight_bit import BLOCK, eight_bit_adamw
from lakeclip.training.adam.rounded_adamw import RoundedAdamW

#: exp(logit_scale) may not pass 100; there is no lower bound (section 2.5).
MAX_LOGIT_SCALE = math.log(100)

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
    """Fill in what the configuration leaves open with the paper's value for the model, or for its kind of tower."""
    return replace(
        config,
        lr=config.lr if config.lr is not None else _PAPER_LR.get(model, 5e-4),
        betas=config.betas or ((0.9, 0.999) if is_resnet else (0.9, 0.98)),
        eps=config.eps if config.eps is not None else (1e-8 if is_resnet else 1e-6),
    )


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, which decay, and gains, biases and scalars, which do not."""
    gains_and_biases = {
        id(parameter)
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(part, _NORMS) or name.endswith("bias") or parameter.ndim == 0
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) not in gains_and_biases], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in gains_and_biases], "weight_decay": 0.0},
    ]


def state_bytes(config: OptimizerConfig) -> float:
    """Bytes that Adam's two running averages take for each parameter."""
    return {"32": 8.0, "bf16": 4.0, "8bit": 2 * (1 + 4 / BLOCK)}[config.states]


def store_text_in_bfloat16(model: CLIP) -> None:
    """Make the weights of the text tower bfloat16, as in the paper; it then computes in bfloat16 too.

    The image tower and the scalars of the loss stay as they are. `adamw` rounds the updates stochastically.
    """
    for name, parameter in model.named_parameters():
        if not name.startswith("visual.") and parameter.ndim:
            parameter.data = parameter.data.to(torch.bfloat16)


def adamw(module: nn.Module, config: OptimizerConfig, *, seed: int = 0) -> torch.optim.Optimizer:
    """The optimiser for a module's trainable parameters, weights with decay and gains and biases without.

    Args and errors: as `adamw_of_groups`.
    """
    return adamw_of_groups(parameter_groups(module, config.weight_decay), config, seed=seed)


def adamw_of_groups(groups: list[dict[str, Any]], config: OptimizerConfig, *, seed: int = 0) -> torch.optim.Optimizer:
    """The optimiser for parameters: PyTorch's fused form where everything is float32.

    Args:
        groups: as `parameter_groups` returns them.
        config: complete, as `with_paper_values` returns it.
        seed: of stochastic rounding, the same in every process.

    Raises:
        ConfigError: 8-bit states are asked for, and torchao is not installed.
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
