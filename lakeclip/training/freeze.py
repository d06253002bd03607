"""What of a model that has learned already is trained, and how fast: locks, learning rates by layer, LoRA."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lakeclip.config.schema import FinetuneOptimizerConfig, KeepConfig
from lakeclip.errors import ConfigError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.layers import Layer, image_layers, parameters, text_layers
from lakeclip.training.optimizers import adamw_of_groups, parameter_groups

#: Weights with fewer rows or columns than this many ranks have nothing to gain from LoRA.
_LEAST_RANKS = 2


def prepare(model: CLIP | DualEncoder, keep: KeepConfig) -> list[nn.Module]:
    """Lock what is to stay as it is, and put LoRA's additions in.

    Returns:
        Modules that must stay in evaluation mode, as all of their parameters stay as they are.

    Raises:
        ConfigError: more layers than there are, or nothing is left to train.
    """
    image, text = image_layers(model), text_layers(model)
    if keep.lora_rank is not None:
        alpha = keep.lora_alpha or 2.0 * keep.lora_rank
        held = _batch_norms(image + text)
        for what, locked, layers in (("lock_image", keep.lock_image, image), ("lock_text", keep.lock_text, text)):
            held += _lock(what, locked, layers)
            _lock(what, "all", layers)
            for layer in layers[_count(what, locked, layers) :]:
                _adapt(layer, keep.lora_rank, alpha)
    else:
        held = _lock("lock_image", keep.lock_image, image) + _lock("lock_text", keep.lock_text, text)
    if not any(parameter.requires_grad for parameter in model.parameters() if parameter.ndim):
        raise ConfigError(
            "both towers are locked, and nothing is left to train",
            next_step="--lock-image all with an open text tower (LiT), or fewer layers",
        )
    return held


def with_usual_values(config: FinetuneOptimizerConfig, *, is_whole: bool) -> FinetuneOptimizerConfig:
    """Fill in what the configuration leaves open.

    Two towers that have never met are brought together by SGD as in OTTER (arXiv 2112.09445, section 4.1: lr 3e-3,
    momentum 0.9, no decay); a whole CLIP is tuned by AdamW at a low rate.

    Args:
        is_whole: the towers have met already, in a CLIP.

    Raises:
        ConfigError: what is asked for is of AdamW, and SGD is to be used.
    """
    chosen = config.algorithm if config.algorithm != "auto" else "adamw" if is_whole else "sgd"
    if chosen == "sgd" and config.states != "32":
        raise ConfigError(
            f"states of {config.states} are asked for, and SGD has none of Adam's",
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


def fine_optimizer(
    model: CLIP | DualEncoder, scalars: list[nn.Parameter], config: FinetuneOptimizerConfig, *, seed: int = 0
) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; with a learning rate for each layer where they are not to learn alike.

    Args:
        scalars: parameters beside the model's.
        config: complete, as `with_usual_values` returns it.
        seed: of stochastic rounding, the same in every process.
    """
    assert config.lr is not None
    groups = parameter_groups(model, config.weight_decay)
    groups[1]["params"] += [scalar for scalar in scalars if scalar.requires_grad]
    if config.layer_decay != 1:
        groups = _by_layer(model, groups, config.lr, config.layer_decay)
    if config.algorithm == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return adamw_of_groups(groups, config, seed=seed)


def _count(what: str, locked: int | Literal["all"], layers: list[Layer]) -> int:
    if locked == "all":
        return len(layers)
    if locked > len(layers):
        raise ConfigError(
            f"{locked} lower layers are to be locked ({what})",
            found=f"a tower of {len(layers)} layers",
            allowed=f"0 to {len(layers)}, or all",
        )
    return locked


def _lock(what: str, locked: int | Literal["all"], layers: list[Layer]) -> list[nn.Module]:
    """Freeze the lower layers; their modules keep to evaluation, in which batch norm and dropout stand still."""
    lower = layers[: _count(what, locked, layers)]
    for layer in lower:
        for parameter in parameters(layer):
            parameter.requires_grad_(False)
    return [part for layer in lower for part in layer if isinstance(part, nn.Module)]


def _batch_norms(layers: list[Layer]) -> list[nn.Module]:
    """Layers that keep statistics of the batch."""
    return [
        module
        for layer in layers
        for part in layer
        if isinstance(part, nn.Module)
        for module in part.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


def _by_layer(model: CLIP | DualEncoder, groups: list[dict[str, Any]], lr: float, decay: float) -> list[dict[str, Any]]:
    """Each group cut up by how far below the top of its tower a parameter is."""
    depth: dict[int, int] = {}
    for layers in (image_layers(model), text_layers(model)):
        for below, layer in enumerate(reversed(layers)):
            depth.update((id(parameter), below) for parameter in parameters(layer))
    cut = []
    for group in groups:
        by_depth: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depth.get(id(parameter), 0), []).append(parameter)
        cut += [{**group, "params": part, "lr": lr * decay**below} for below, part in sorted(by_depth.items())]
    return cut


# ── LoRA ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class LowRank(nn.Module):
    """weight + (alpha / rank) · up @ down, which begins as the weight itself (Hu et al. 2021, arXiv 2106.09685).

    It stands in the weight's place, whoever reads it there, so that it also reaches weights that are not the property
    of a linear layer: the joint projection of a transformer's attention.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.register_buffer("scale", torch.tensor(alpha / rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with what was learned."""
        return weight + (self.scale * (self.up @ self.down)).view_as(weight)


def _adapt(layer: Layer, rank: int, alpha: float) -> None:
    """Put LoRA on every matrix and convolution of a layer that is large enough; tables of embeddings stay."""
    modules = [module for part in layer if isinstance(part, nn.Module) for module in part.modules()]
    for module in modules:
        if isinstance(module, (nn.Embedding, parametrize.ParametrizationList, LowRank)):
            continue
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim >= 2 and min(weight.flatten(1).shape) >= _LEAST_RANKS * rank:
                parametrize.register_parametrization(module, name, LowRank(weight, rank, alpha))
