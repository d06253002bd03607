"""What decays, and what each model of the paper is trained with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lakeclip.config.schema import ModelConfig, OptimizerConfig
from lakeclip.models.clip import CLIP
from lakeclip.training.optimizers import MAX_LOGIT_SCALE, adamw, parameter_groups, with_paper_values

SMALL = ModelConfig(
    embed_dim=16,
    image_resolution=32,
    vision_layers=(1, 1, 1, 1),
    vision_width=16,
    vision_patch_size=None,
    context_length=12,
    vocab_size=50,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=2,
)


def test_gains_biases_and_the_scale_do_not_decay() -> None:
    """Defect 2: weight decay on every parameter."""
    model = CLIP(SMALL)
    decayed, kept = (group["params"] for group in parameter_groups(model, 0.2))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    gains = {
        f"{name}.weight" for name, part in model.named_modules() if isinstance(part, (nn.LayerNorm, nn.BatchNorm2d))
    }
    assert gains
    for parameter in kept:
        name = names[id(parameter)]
        assert name.endswith("bias") or name in gains or name == "logit_scale", name
    for parameter in decayed:
        name = names[id(parameter)]
        assert not name.endswith("bias"), name
        assert name not in gains
        assert name != "logit_scale"
    assert len(decayed) + len(kept) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = CLIP(SMALL)
    model.visual.requires_grad_(False)
    held = {id(p) for group in parameter_groups(model, 0.2) for p in group["params"]}
    assert not held & {id(p) for p in model.visual.parameters()}


def test_scale_is_capped_at_100_only() -> None:
    """Defect 3: the paper caps the scale above and not below."""
    assert math.exp(MAX_LOGIT_SCALE) == pytest.approx(100)


@pytest.mark.parametrize(
    ("model", "resnet", "lr", "betas", "eps"),
    [
        ("RN50", True, 5e-4, (0.9, 0.999), 1e-8),
        ("RN50x64", True, 3.6e-4, (0.9, 0.999), 1e-8),
        ("ViT-B/32", False, 5e-4, (0.9, 0.98), 1e-6),
        ("ViT-L/14-336px", False, 2e-5, (0.9, 0.98), 1e-6),
        ("mine", False, 5e-4, (0.9, 0.98), 1e-6),
    ],
)
def test_paper_values(model: str, resnet: bool, lr: float, betas: tuple[float, float], eps: float) -> None:
    config = with_paper_values(OptimizerConfig(), model, is_resnet=resnet)
    assert (config.lr, config.betas, config.eps, config.weight_decay) == (lr, betas, eps, 0.2)
    mine = with_paper_values(OptimizerConfig(lr=1e-3, betas=(0.5, 0.6), eps=0.1), model, is_resnet=resnet)
    assert (mine.lr, mine.betas, mine.eps) == (1e-3, (0.5, 0.6), 0.1)


def test_decay_is_decoupled() -> None:
    """With no gradient at all a weight shrinks by lr × decay, and a bias stays."""
    layer = nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = adamw(layer, with_paper_values(OptimizerConfig(lr=0.1, weight_decay=0.5), "mine", is_resnet=False))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias.detach(), before[1])
