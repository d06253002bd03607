"""Tests that open_clip computes the same features from the same weights, and has the same sizes and initialization.

open_clip is not a dependency: these tests run in the second environment, which the benchmarks use too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from lakeclip.config.schema import ModelConfig
from lakeclip.models.clip import CLIP
from lakeclip.models.zoo import available_models, model_config

open_clip = pytest.importorskip("open_clip")

VIT = ModelConfig(
    embed_dim=48,
    image_resolution=64,
    vision_layers=3,
    vision_width=128,
    vision_patch_size=16,
    context_length=20,
    vocab_size=3000,
    transformer_width=96,
    transformer_heads=3,
    transformer_layers=4,
)
RESNET = dataclasses.replace(VIT, vision_layers=(2, 1, 2, 1), vision_width=16, vision_patch_size=None)
SMALL = {"ViT": VIT, "RN": RESNET}


def open_clip_model(config: ModelConfig) -> Any:
    """Build open_clip's model of the same sizes."""
    layers = config.vision_layers
    vision = open_clip.CLIPVisionCfg(
        layers=layers if isinstance(layers, int) else list(layers),
        width=config.vision_width,
        patch_size=config.vision_patch_size,
        image_size=config.image_resolution,
    )
    text = open_clip.CLIPTextCfg(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.transformer_width,
        heads=config.transformer_heads,
        layers=config.transformer_layers,
    )
    return open_clip.CLIP(config.embed_dim, vision, text, quick_gelu=True)


def model_pair(kind: str) -> tuple[CLIP, Any]:
    """Return our model with noise on every parameter, and open_clip's with the same weights."""
    torch.manual_seed(0)
    ours = CLIP(SMALL[kind])
    for parameter in ours.parameters():  # gains and biases too, because ones and zeros would hide errors
        parameter.data += 0.02 * torch.randn_like(parameter)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    theirs = open_clip_model(SMALL[kind])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_image_features(kind: str, training: bool) -> None:
    ours, theirs = (model.train(training) for model in model_pair(kind))
    images = torch.randn(6, 3, 64, 64)
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # batch statistics


@pytest.mark.parametrize("kind", SMALL)
def test_text_features(kind: str) -> None:
    ours, theirs = model_pair(kind)
    ids = torch.randint(1, 2998, (4, 20))
    for row, length in zip(ids, (3, 20, 7, 12), strict=True):
        row[length - 1] = 2999
        row[length:] = 0
    torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.encode_text(ids[2:, :12]), theirs.encode_text(ids)[2:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_gradients(kind: str) -> None:
    ours, theirs = (model.double() for model in model_pair(kind))
    images, ids = (
        torch.randn(3, 3, 64, 64, dtype=torch.float64),
        torch.tensor([[1, 5, 2999], [1, 2999, 0], [9, 8, 2999]]),
    )
    full = nn.functional.pad(ids, (0, 17))
    (ours.encode_image(images) * ours.encode_text(ids)).sum().backward()
    (theirs.encode_image(images) * theirs.encode_text(full)).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-10, msg=name, check_stride=False)


@pytest.mark.parametrize("kind", SMALL)
def test_initial_weights_have_equal_distributions(kind: str) -> None:
    torch.manual_seed(0)
    ours, theirs = CLIP(SMALL[kind]), open_clip_model(SMALL[kind])
    for name, parameter in theirs.named_parameters():
        ours_value = ours.get_parameter(name).detach()
        parameter = parameter.detach()
        if parameter.numel() == 1 or not parameter.std():
            torch.testing.assert_close(ours_value, parameter, msg=name)  # ones, zeros, the temperature
            continue
        # The standard deviation of n samples varies by about 1/√n.
        tolerance = 6 / parameter.numel() ** 0.5
        assert ours_value.std().item() == pytest.approx(parameter.std().item(), rel=tolerance), name
        assert ours_value.mean().item() == pytest.approx(0, abs=tolerance * parameter.std().item()), name


@pytest.mark.parametrize("name", [name for name in available_models() if not name.endswith(("64px", "32px"))])
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        ours = CLIP(model_config(name))
        theirs = open_clip.create_model(name.removesuffix("px").replace("/", "-"), device="meta")
    shapes = {key: parameter.shape for key, parameter in ours.state_dict().items()}
    assert shapes == {key: parameter.shape for key, parameter in theirs.state_dict().items()}
