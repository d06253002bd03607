"""Test exports: they load in lakeclip and in other libraries, and reproduce the features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from lakeclip.checkpoints import exports
from lakeclip.checkpoints.convert import build_model
from lakeclip.checkpoints.exports import FORMATS, export
from lakeclip.checkpoints.layouts import load_weights
from lakeclip.checkpoints.open_clip import WEIGHTS
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError, ConfigError, OutputError
from lakeclip.losses.registry import LOSSES
from lakeclip.models.clip import CLIP
from lakeclip.text.tokenizer import tokenize
from lakeclip.types import Tokenize

VIT = ModelConfig(
    embed_dim=48,
    image_resolution=64,
    vision_layers=2,
    vision_width=128,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=2,
)
RESNET = dataclasses.replace(VIT, vision_layers=(1, 1, 1, 1), vision_width=16, vision_patch_size=None)


def random_clip(config: ModelConfig, *, sigmoid: bool = False) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(config, scalars=LOSSES["sigmoid" if sigmoid else "softmax"].scalars).eval()
    for parameter in model.parameters():  # also gains and biases, whose ones and zeros would hide errors
        if parameter.ndim:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize(
    "to", [pytest.param(to, marks=[pytest.mark.slow] if to in ("onnx", "torch-export") else []) for to in FORMATS]
)
def test_every_layout_reproduces_the_features(to: str, config: ModelConfig, half: bool, tmp_path: Path) -> None:
    model, out = random_clip(config), tmp_path / "out"
    if to == "huggingface" and config is RESNET:
        with pytest.raises(CheckpointError, match="ResNet"):
            export(model, to, out)
        return
    if half and to in ("onnx", "torch-export"):
        with pytest.raises(ConfigError, match="half precision"):
            export(model, to, out, half=True)
        return
    done = export(model, to, out, half=half)
    assert done.difference <= 1e-5
    if to in ("onnx", "torch-export"):
        assert json.loads((out / "clip.json").read_text())["features"]["dim"] == config.embed_dim
    elif to != "safetensors":
        path = out / WEIGHTS if to == "open_clip" else out
        back = build_model(load_weights(f"{to}:{path}"))
        assert back.config == config
        expected = model.half().float() if half else model
        for name, value in back.state_dict().items():
            torch.testing.assert_close(
                value, expected.state_dict()[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_folder_for_hugging_face_is_complete(tmp_path: Path) -> None:
    """Check that model, processor and tokenizer load offline, and that the tokenizer yields lakeclip's ids."""
    from PIL import Image

    model = random_clip(VIT)
    export(model, "huggingface", tmp_path / "hf")
    captions = ["a photo of a dog", "Two  CHILDREN's toys, 42!", "naïve café"]
    tokens = AutoTokenizer.from_pretrained(tmp_path / "hf")(captions, padding="max_length", return_tensors="pt")
    ours = tokenize(captions)
    for mine, theirs, mask in zip(ours, tokens["input_ids"], tokens["attention_mask"], strict=True):
        length = int(mask.sum())
        assert theirs[:length].tolist() == mine[:length].tolist()
    processor = CLIPProcessor.from_pretrained(tmp_path / "hf")
    pixels = processor(images=Image.new("RGB", (80, 70), (200, 30, 90)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    theirs = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        logits = theirs(input_ids=tokens["input_ids"], pixel_values=pixels).logits_per_image
        expected, _ = model(pixels, ours)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_sigmoid_model_needs_a_layout_with_a_bias(tmp_path: Path) -> None:
    model = random_clip(VIT, sigmoid=True)
    for to in ("openai", "huggingface"):
        with pytest.raises(CheckpointError, match="sigmoid"):
            export(model, to, tmp_path / to)
    export(model, "open_clip", tmp_path / "open_clip")
    assert build_model(load_weights(f"open_clip:{tmp_path}/open_clip/{WEIGHTS}")).logit_bias is not None


@pytest.mark.parametrize("to", ["openai"])
@pytest.mark.parametrize(
    "change", [{"activation": "gelu"}, {"image_mean": (0.5, 0.5, 0.5)}, {"end_token": 7}, {"resize_mode": "squash"}]
)
def test_settings_without_a_place_in_the_layout_are_refused(to: str, change: dict[str, Any], tmp_path: Path) -> None:
    model = random_clip(dataclasses.replace(VIT, **change))
    with pytest.raises(CheckpointError, match="cannot be exported") as error:
        export(model, to, tmp_path / "out")
    assert next(iter(change)) in error.value.found
    assert not (tmp_path / "out").exists()
    assert export(model, "safetensors", tmp_path / "x.safetensors").difference <= 1e-5


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        export(random_clip(VIT), "openai", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_wrong_conversion_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = FORMATS["safetensors"]

    def wrong(model: CLIP, out: Path, dtype: torch.dtype, tokenize: Tokenize | None) -> None:
        model = random_clip(VIT)
        model.visual.proj.data[0] += 1
        write(model, out, dtype, tokenize)

    monkeypatch.setitem(exports.FORMATS, "safetensors", (wrong, read))
    with pytest.raises(CheckpointError, match="does not reproduce"):
        export(random_clip(VIT), "safetensors", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "bert"}, "model_type 'bert'"), ({"vision_config": {"hidden_act": "silu"}}, "hidden_act")],
)
def test_a_folder_of_another_model_raises(change: dict[str, object], message: str, tmp_path: Path) -> None:
    export(random_clip(VIT), "huggingface", tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_weights(f"huggingface:{tmp_path}/hf")
