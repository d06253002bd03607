"""Freezing of pretrained towers, LoRA, and the optimiser of fine-tuning with layer-wise learning rates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from lakeclip.config.schema import FinetuneOptimizerConfig, KeepConfig
from lakeclip.errors import ConfigError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.layers import Layer, batch_norms, image_layers, parameters, text_layers
from lakeclip.training.lora import add_lora
from lakeclip.training.optim.optimizers import adamw_from_groups, parameter_groups


def freeze_and_adapt(model: CLIP | DualEncoder, keep: KeepConfig) -> list[nn.Module]:
    """Freeze the locked layers, and add LoRA to the others if requested.

    Returns:
        Modules that must stay in evaluation mode: the frozen layers, and with LoRA all batch norms.

    Raises:
        ConfigError: more layers are to be locked than a tower has, or nothing is left to train.
    """
    image, text = image_layers(model), text_layers(model)
    if keep.lora_rank is not None:
        alpha = keep.lora_alpha or 2.0 * keep.lora_rank
        frozen: list[nn.Module] = [*batch_norms(model)]
        for option, locked, layers in (("lock_image", keep.lock_image, image), ("lock_text", keep.lock_text, text)):
            frozen += _freeze(option, locked, layers)
            _freeze(option, "all", layers)
            for layer in layers[_num_locked(option, locked, layers) :]:
                add_lora(layer, keep.lora_rank, alpha)
    else:
        frozen = _freeze("lock_image", keep.lock_image, image) + _freeze("lock_text", keep.lock_text, text)
    if not any(parameter.requires_grad for parameter in model.parameters() if parameter.ndim):
        raise ConfigError(
            "both towers are locked, so nothing is left to train",
            next_step="--lock-image all with an unlocked text tower (LiT), or fewer locked layers",
        )
    return frozen


def with_finetune_defaults(config: FinetuneOptimizerConfig, *, is_clip: bool) -> FinetuneOptimizerConfig:
    """Fill in the values that the configuration leaves open.

    Two towers from different models are trained by SGD as in OTTER (arXiv 2112.09445, section 4.1: lr 3e-3, momentum
    0.9, no decay); a pretrained CLIP is tuned by AdamW at a low rate.

    Args:
        is_clip: the two towers were pretrained together, as a CLIP.

    Raises:
        ConfigError: `states` or `text_weights` do not work with the algorithm.
    """
    chosen = config.algorithm if config.algorithm != "auto" else "adamw" if is_clip else "sgd"
    if chosen == "sgd" and config.states != "32":
        raise ConfigError(
            f"{config.states} states were requested, but SGD does not have Adam's states",
            next_step="--algorithm adamw, or --states 32",
        )
    if config.text_weights != "32":
        raise ConfigError(f"text_weights cannot be {config.text_weights} in fine-tuning", allowed="32")
    return replace(
        config,
        algorithm=chosen,
        lr=config.lr if config.lr is not None else 3e-3 if chosen == "sgd" else 1e-5,
        betas=config.betas or (0.9, 0.999),
        eps=config.eps if config.eps is not None else 1e-8,
    )


def build_finetune_optimizer(
    model: CLIP | DualEncoder, scalars: list[nn.Parameter], config: FinetuneOptimizerConfig, *, seed: int = 0
) -> torch.optim.Optimizer:
    """Build SGD with momentum or AdamW, with one learning rate per layer if `layer_decay` is not 1.

    Args:
        scalars: parameters in addition to the model's.
        config: complete, as `with_finetune_defaults` returns it.
        seed: seed of stochastic rounding, the same in every process.
    """
    assert config.lr is not None
    groups = parameter_groups(model, config.weight_decay)
    groups[1]["params"] += [scalar for scalar in scalars if scalar.requires_grad]
    if config.layer_decay != 1:
        groups = _split_by_layer(model, groups, config.lr, config.layer_decay)
    if config.algorithm == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return adamw_from_groups(groups, config, seed=seed)


def _num_locked(option: str, locked: int | Literal["all"], layers: list[Layer]) -> int:
    if locked == "all":
        return len(layers)
    if locked > len(layers):
        raise ConfigError(
            f"{locked} lower layers are to be locked ({option})",
            found=f"a tower of {len(layers)} layers",
            allowed=f"0 to {len(layers)}, or all",
        )
    return locked


def _freeze(option: str, locked: int | Literal["all"], layers: list[Layer]) -> list[nn.Module]:
    """Freeze the lower layers, and return their modules, which must stay in evaluation mode (batch norm, dropout)."""
    lower = layers[: _num_locked(option, locked, layers)]
    for layer in lower:
        for parameter in parameters(layer):
            parameter.requires_grad_(False)
    return [part for layer in lower for part in layer if isinstance(part, nn.Module)]


def _split_by_layer(
    model: CLIP | DualEncoder, groups: list[dict[str, Any]], lr: float, decay: float
) -> list[dict[str, Any]]:
    """Split each group by a parameter's layer: lr · decay^(number of layers above it in its tower)."""
    depth: dict[int, int] = {}
    for layers in (image_layers(model), text_layers(model)):
        for below, layer in enumerate(reversed(layers)):
            depth.update((id(parameter), below) for parameter in parameters(layer))
    split = []
    for group in groups:
        by_depth: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depth.get(id(parameter), 0), []).append(parameter)
        split += [{**group, "params": part, "lr": lr * decay**below} for below, part in sorted(by_depth.items())]
    return split
