"""Tests that weights saved by open_clip give the same features, and that both read OpenAI's layout alike.

open_clip is not a dependency: these tests run in the second environment, which the benchmarks use too.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lakeclip.checkpoints.convert import build_model
from lakeclip.checkpoints.layouts import load_weights
from lakeclip.checkpoints.open_clip import read_open_clip
from lakeclip.checkpoints.openai import read_openai
from lakeclip.config.schema import ModelConfig
from lakeclip.models.clip import CLIP
from tests.unit.checkpoints.weights import RESNET, SIZES, SMALL, VIT, random_clip, save, to_half

open_clip = pytest.importorskip("open_clip")


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """Convert sizes to open_clip's model configuration."""
    layers = config.vision_layers
    vision = {
        "layers": layers if isinstance(layers, int) else list(layers),
        "width": config.vision_width,
        "patch_size": config.vision_patch_size,
        "image_size": config.image_resolution,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.transformer_width,
        "heads": config.transformer_heads,
        "layers": config.transformer_layers,
    }
    return {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


def open_clip_model(config: ModelConfig, kind: str = "CLIP", **options: Any) -> Any:
    """Build open_clip's model of the same sizes, with noise on every parameter."""
    torch.manual_seed(0)
    model = getattr(open_clip, kind)(**open_clip_config(config), **options)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


def assert_same_features(ours: CLIP, theirs: Any) -> None:
    side, config = ours.config.image_resolution, ours.config
    images = torch.randn(4, 3, side, side)
    ids = torch.randint(1, config.vocab_size - 2, (4, config.context_length))
    for row, length in zip(ids, (3, config.context_length, 7, 5), strict=True):
        row[length - 1] = config.vocab_size - 1
        row[length:] = 0
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), rtol=0, atol=1e-5)
    assert ours.logit_scale.item() == pytest.approx(theirs.logit_scale.item())


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("form", ["torch", "training", "safetensors"])
def test_features(tmp_path: Path, size: str, kind: str, form: str) -> None:
    theirs, path = open_clip_model(SMALL[size], kind), tmp_path / "x.pt"
    weights = theirs.state_dict()
    if form == "safetensors":
        safetensors.torch.save_file(weights, path)
    elif form == "training":
        optimizer = torch.optim.AdamW(theirs.parameters()).state_dict()
        state_dict = {f"module.{key}": value for key, value in weights.items()}
        save(path, {"epoch": 1, "name": "run", "state_dict": state_dict, "optimizer": optimizer})
    else:
        save(path, weights)
    found = load_weights(f"open_clip:{path}")
    assert found.model_config == SMALL[size]
    assert_same_features(build_model(found), theirs)


def test_the_configuration_file_overrides_inferred_heads(tmp_path: Path) -> None:
    config = dataclasses.replace(VIT, transformer_width=96, transformer_heads=3)
    theirs = open_clip_model(config)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip_config(config)}))
    found = read_open_clip(save(tmp_path / "x.pt", theirs.state_dict()))
    assert found.model_config == config
    assert_same_features(build_model(found), theirs)


@pytest.mark.parametrize("nonscalar", [False, True])
def test_the_logit_bias_of_the_sigmoid_objective_is_read(tmp_path: Path, nonscalar: bool) -> None:
    theirs = open_clip_model(VIT, init_logit_bias=-10.0, nonscalar_logit_scale=nonscalar)
    ours = build_model(read_open_clip(save(tmp_path / "x.pt", theirs.state_dict())))
    assert_same_features(ours, theirs)
    assert ours.logit_bias is not None
    assert ours.logit_bias.item() == theirs.logit_bias.item()


@pytest.mark.parametrize("size", [16, 64, 88])
def test_position_embeddings_are_resampled_as_in_open_clip(tmp_path: Path, size: int) -> None:
    weights = open_clip_model(VIT).state_dict()
    found = read_open_clip(save(tmp_path / "x.pt", weights))
    theirs = open_clip.CLIP(**open_clip_config(dataclasses.replace(VIT, image_resolution=size))).eval()
    open_clip.model.resize_pos_embed(weights, theirs)
    theirs.load_state_dict(weights)
    ours = build_model(found, size)
    assert ours.state_dict()["visual.positional_embedding"].equal(weights["visual.positional_embedding"])
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("size", SMALL)
def test_openais_layout_is_read_as_in_open_clip(tmp_path: Path, size: str) -> None:
    weights: dict[str, Tensor] = to_half(random_clip(SMALL[size]).state_dict()) | SIZES
    ours = build_model(read_openai(save(tmp_path / "x.pt", weights)))
    theirs = open_clip.model.build_model_from_openai_state_dict(dict(weights)).float()
    assert ours.config == SMALL[size]
    assert_same_features(ours, theirs)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("config", [VIT, RESNET], ids=["ViT", "RN"])
def test_a_traced_model_is_read(tmp_path: Path, config: ModelConfig) -> None:
    theirs = open_clip_model(config)
    images = torch.zeros(2, 3, config.image_resolution, config.image_resolution)
    traced = torch.jit.trace(theirs, (images, torch.zeros(2, config.context_length, dtype=torch.int64)))
    traced.save(str(tmp_path / "x.pt"))
    ours = build_model(read_open_clip(tmp_path / "x.pt"))
    assert ours.config == config
    assert_same_features(ours, theirs)
