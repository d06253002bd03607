"""Small models with random weights, and files of them in the forms that other projects use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from lakeclip.config.schema import ModelConfig
from lakeclip.losses.registry import LOSSES
from lakeclip.models.clip import CLIP

VIT = ModelConfig(
    embed_dim=24,
    image_resolution=32,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=8,
    context_length=12,
    vocab_size=100,
    transformer_width=128,
    transformer_heads=2,
    transformer_layers=3,
)
RESNET = dataclasses.replace(
    VIT, image_resolution=64, vision_layers=(2, 1, 3, 1), vision_width=16, vision_patch_size=None
)
SMALL = {"ViT": VIT, "RN": RESNET}

#: Entries of OpenAI's files that are not weights.
SIZES = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(12), "vocab_size": torch.tensor(100)}


def random_clip(config: ModelConfig = VIT, *, sigmoid: bool = False) -> CLIP:
    """Return a model in evaluation mode with noise on all parameters and random batch statistics."""
    torch.manual_seed(0)
    model = CLIP(config, scalars=LOSSES["sigmoid" if sigmoid else "softmax"].scalars)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def to_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in float16; counts stay integers."""
    return {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}


def features(model: CLIP) -> tuple[Tensor, Tensor]:
    """Return features of three images and three texts, which are the same for all models of one size."""
    random = torch.Generator().manual_seed(1)
    side = model.config.image_resolution
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=random)
    ids = torch.tensor([[98, 5, 6, 99, 0, 0], [98, 99, 0, 0, 0, 0], [98, 7, 8, 9, 3, 99]])
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(ids)


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


class Module(nn.Module):
    """A module of any kind; only its parameters and buffers matter."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def module_tree(weights: dict[str, Tensor]) -> Module:
    """Return a tree of modules whose state dict has these weights."""
    root = Module()
    for key, value in weights.items():
        *parents, name = key.split(".")
        module: nn.Module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, Module())
            module = module.get_submodule(parent)
        if value.is_floating_point():
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
    return root


def save_torchscript(path: Path, weights: dict[str, Tensor]) -> Path:
    """Save a TorchScript archive with these weights."""
    torch.jit.script(module_tree(weights)).save(str(path))
    return path
