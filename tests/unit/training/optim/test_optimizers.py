"""Parameter groups, the paper's hyperparameters, and low-precision states."""

from __future__ import annotations

import copy
import io
import math
from typing import Literal

import pytest
import torch
from torch import nn

from lakeclip.config.schema import ModelConfig, OptimizerConfig
from lakeclip.errors import ConfigError
from lakeclip.losses.registry import MAX_LOGIT_SCALE
from lakeclip.models.clip import CLIP
from lakeclip.training.optim import eight_bit
from lakeclip.training.optim.optimizers import (
    adamw,
    parameter_groups,
    state_bytes,
    store_text_in_bfloat16,
    with_paper_values,
)

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


def test_gains_biases_and_the_scale_have_no_weight_decay() -> None:
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


def test_frozen_parameters_are_in_no_group() -> None:
    model = CLIP(SMALL)
    model.visual.requires_grad_(False)
    held = {id(p) for group in parameter_groups(model, 0.2) for p in group["params"]}
    assert not held & {id(p) for p in model.visual.parameters()}


def test_scale_is_capped_at_100_only() -> None:
    """The paper caps the scale above and not below."""
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
    """With zero gradients a weight shrinks by lr × decay, and a bias does not change."""
    layer = nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = adamw(layer, with_paper_values(OptimizerConfig(lr=0.1, weight_decay=0.5), "mine", is_resnet=False))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias.detach(), before[1])


# ── half precision ────────────────────────────────────────────────────────────────────────────────────────────────


def trained(config: OptimizerConfig) -> tuple[CLIP, torch.optim.Optimizer]:
    """Train a small model for one step."""
    torch.manual_seed(0)
    model = CLIP(SMALL)
    if config.text_weights == "bf16":
        store_text_in_bfloat16(model)
    optimizer = adamw(model, with_paper_values(config, "mine", is_resnet=False))
    images, texts = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.randint(1, 50, (3, 12))
    model(images, texts)[0].diagonal().sum().backward()
    optimizer.step()
    return model, optimizer


def test_float32_uses_pytorchs_fused_adamw() -> None:
    _, optimizer = trained(OptimizerConfig())
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("states", ["32", "bf16"])
@pytest.mark.parametrize("text_weights", ["32", "bf16"])
def test_state_bytes_are_those_of_the_optimizer(
    states: Literal["32", "bf16"], text_weights: Literal["32", "bf16"]
) -> None:
    config = OptimizerConfig(states=states, text_weights=text_weights)
    model, optimizer = trained(config)
    held = sum(entry[name].nbytes for entry in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert held == state_bytes(config) * sum(parameter.numel() for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        in_half = text_weights == "bf16" and not name.startswith("visual.") and name != "logit_scale"
        assert parameter.dtype == (torch.bfloat16 if in_half else torch.float32), name


def test_8_bit_states_without_torchao_show_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bit, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lakeclip\[low-bit\]'"):
        trained(OptimizerConfig(states="8bit"))


@pytest.mark.slow
def test_8_bit_states_take_a_quarter_and_resume_from_plain_tensors() -> None:
    pytest.importorskip("torchao", reason="8-bit states need torchao")
    config = with_paper_values(OptimizerConfig(states="8bit", lr=1e-2), "mine", is_resnet=False)

    def run(layer: nn.Linear, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(256, 64)
    cut = copy.deepcopy(whole)
    one, first = adamw(whole, config), adamw(cut, config)
    run(whole, one, 0)
    run(whole, one, 1)
    run(cut, first, 0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    assert b"torchao" not in file.getvalue(), "a checkpoint can be read without torchao"
    weight = first.state_dict()["state"][0]["exp_avg"]
    assert weight["codes"].nbytes + weight["scale"].nbytes == state_bytes(config) / 2 * 256 * 64
    file.seek(0)
    second = adamw(cut, config)
    second.load_state_dict(torch.load(file, weights_only=True))
    run(cut, second, 1)
    assert torch.equal(whole.weight, cut.weight)
    assert torch.equal(whole.bias, cut.bias)
