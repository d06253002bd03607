"""LoRA: low-rank updates of frozen weights (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lakeclip.models.layers import Layer

#: LoRA is added only to weights with at least this many times `rank` rows and columns: smaller ones would save nothing.
_MIN_SIZE_IN_RANKS = 2


class LoRAParametrization(nn.Module):
    """Parametrization: weight + (alpha / rank) · up @ down, initially the weight itself (arXiv 2106.09685).

    As a parametrization it applies wherever the weight is read, so it also covers weights that are not in a linear
    layer, such as the joint input projection of `nn.MultiheadAttention`.
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
        """Return the weight with the low-rank update added."""
        return weight + (self.scale * (self.up @ self.down)).view_as(weight)


def add_lora(layer: Layer, rank: int, alpha: float) -> None:
    """Add LoRA to every matrix and convolution of a layer that is large enough, except embedding tables."""
    modules = [module for part in layer if isinstance(part, nn.Module) for module in part.modules()]
    for module in modules:
        if isinstance(module, (nn.Embedding, parametrize.ParametrizationList, LoRAParametrization)):
            continue
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim >= 2 and min(weight.flatten(1).shape) >= _MIN_SIZE_IN_RANKS * rank:
                parametrize.register_parametrization(module, name, LoRAParametrization(weight, rank, alpha))
