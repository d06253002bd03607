"""Tests of models by name, shipped and the user's own, and of their parameter and FLOP counts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

import lakeclip
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import ModelError
from lakeclip.models.zoo import (
    available_models,
    count_model,
    create_model,
    model_config,
    model_config_from_dict,
    summarize,
)

COUNTS = Path(lakeclip.__file__).parent / "models/configs/counts.json"
#: Parameters of the image tower and of the whole model, as in open_clip (see tests/parity/test_open_clip.py).
PAPER = {
    "RN50": (38_316_896, 102_007_137),
    "RN101": (56_259_936, 119_688_033),
    "RN50x4": (87_137_080, 178_300_601),
    "RN50x16": (167_328_912, 290_979_217),
    "RN50x64": (420_380_352, 623_258_305),
    "ViT-B/32": (87_849_216, 151_277_313),
    "ViT-B/16": (86_192_640, 149_620_737),
    "ViT-L/14": (303_966_208, 427_616_513),
    "ViT-L/14-336px": (304_293_888, 427_944_193),
}
SMALL = {
    "embed_dim": 32,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 8,
    "context_length": 16,
    "vocab_size": 500,
    "transformer_width": 64,
    "transformer_heads": 2,
    "transformer_layers": 2,
}


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_of_the_papers_models(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    counted = [sum(parameter.numel() for parameter in module.parameters()) for module in (model.visual, model)]
    assert tuple(counted) == PAPER[name]
    summary = summarize(model_config(name))
    assert (summary.image_parameters, summary.parameters) == PAPER[name]
    assert summary.text_parameters == summary.parameters - summary.image_parameters - 1


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("RN26-64px", "ViT-Ti/4-32px") else pytest.param(name, marks=pytest.mark.slow)
        for name in available_models()
    ],
)
def test_the_shipped_counts_are_those_of_the_models(name: str) -> None:
    config = model_config(name)
    counted = count_model(config)
    if os.environ.get("MODEL_COUNTS") == "write":
        table = json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.exists() else {}
        table[name] = asdict(counted)
        COUNTS.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    table = json.loads(COUNTS.read_text(encoding="utf-8"))
    assert table[name] == asdict(counted), 'run MODEL_COUNTS=write pytest -m "" tests/unit/models/test_zoo.py'
    assert summarize(config) == counted


def test_all_models_of_the_paper_are_shipped() -> None:
    models = available_models()
    assert set(PAPER) < set(models)
    small = {name: config.image_resolution for name, config in models.items() if name not in PAPER}
    assert small == {"RN26-64px": 64, "ViT-S/16": 224, "ViT-Ti/8-64px": 64, "ViT-Ti/4-32px": 32}


def test_models_are_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert create_model("ViT-Ti/4-32px").config.vision_layers == 6


def test_flops_equal_a_manual_count() -> None:
    summary = summarize(model_config_from_dict("small", SMALL))
    tokens, width = 17, 64
    linear = 12 * width * width  # queries, keys, values, output; and two layers of four times the width
    block = 2 * tokens * linear + 2 * 2 * tokens * tokens * width
    # The last block computes keys and values of all tokens, and the rest for the class token alone.
    last = 2 * tokens * 2 * width * width + 2 * 10 * width * width + 2 * 2 * tokens * width
    patches = 2 * 16 * (3 * 8 * 8) * width
    assert summary.image_gflops * 1e9 == pytest.approx(patches + block + last + 2 * width * 32)
    assert summary.gflops == summary.image_gflops + summary.text_gflops
    # RN50 at 224 pixels: 5.8 · 10⁹ multiply-adds (the original ResNet-50 has 4.1, with a simpler stem).
    assert summarize(model_config("RN50")).image_gflops == pytest.approx(2 * 5.8, rel=0.05)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ViT-B-32", "ViT-B/32"), ("vit_b16", "ViT-B/16"), ("resnet50", "RN50"), ("ViT-L/14@336px", "ViT-L/14-336px")],
)
def test_similar_names_are_suggested(typed: str, meant: str) -> None:
    with pytest.raises(ModelError) as caught:
        model_config(typed)
    assert caught.value.found.startswith(f"similar names: {meant}")
    assert "RN101" in caught.value.allowed


def test_no_similar_name_is_suggested_for_a_meaningless_one() -> None:
    with pytest.raises(ModelError) as caught:
        create_model("%%%")
    assert caught.value.found == ""


def test_a_users_file_adds_and_replaces_models(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"mine": SMALL, "RN50": {**SMALL, "embed_dim": 48}}))
    models = available_models(file)
    assert list(models)[-1] == "mine"
    assert models["RN50"].embed_dim == 48
    assert models["RN101"] == model_config("RN101")
    assert create_model("mine", model_config_file=file).config == ModelConfig(**SMALL)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"mine\.yaml"):
        model_config("Mine!", file)


def test_lists_of_stages_are_converted_to_tuples() -> None:
    resnet = {**SMALL, "vision_layers": [1, 2, 3, 4], "vision_width": 16, "vision_patch_size": None}
    assert model_config_from_dict("resnet", resnet).vision_layers == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": "wide"}, "embed_dim: 'wide'; a whole number"),
        ({"embed_dim": None}, "embed_dim: None; a whole number"),
        ({"embed_dim": 0}, "embed_dim: 0; at least 1"),
        ({"embed_dims": 3}, "embed_dims: no such field; did you mean embed_dim?"),
        ({"vision_width": 100}, "vision_width: 100; a multiple of 64"),
        ({"image_resolution": 33}, "image_resolution: 33; a multiple of vision_patch_size, 8"),
        ({"vision_layers": [1, 2, 3]}, "vision_layers: [1, 2, 3]; a whole number, or four in brackets"),
        ({"vision_layers": [1, 2, 3, 4]}, "vision_layers: (1, 2, 3, 4); one number of blocks"),
        ({"vision_patch_size": None}, "vision_layers: 2; four numbers of bottlenecks"),
        ({"transformer_heads": 3}, "transformer_heads: 3; a divisor of transformer_width, 64"),
        ({"vision_patch_size": None, "vision_layers": [1, 1, 1, 1], "image_resolution": 48}, "48; a multiple of 32"),
        ({"vision_patch_size": None, "vision_layers": [1, 1, 1, 1], "vision_width": 7}, "vision_width: 7; an even"),
        ({"vision_patch_size": None, "vision_layers": [1, 1, 1, 0]}, "vision_layers: 0; at least 1"),
        ({"vision_patch_size": None, "vision_layers": [1, 1, 1, 1], "vision_pool": "map"}, "map; leave it out"),
        ({"vision_pool": "max"}, "vision_pool: 'max'; class or average or map"),
        ({"vision_class_token": False}, "vision_pool: class; average or map"),
        ({"vision_heads": 5}, "vision_heads: 5; a divisor of vision_width, 64"),
        ({"vision_projection": "none"}, "vision_projection: none; matrix"),
        ({"text_pool": "first"}, "text_pool: first; eot or last"),
        ({"text_projection": "none"}, "text_projection: none; matrix or linear"),
        ({"causal": "perhaps"}, "causal: 'perhaps'; true or false"),
        ({"end_token": 60000}, "end_token: 60000; an id below vocab_size"),
        ({"layer_norm_eps": 0}, "layer_norm_eps: 0.0; above 0"),
        ({"image_std": [0, 1, 1]}, "image_std: [0.0, 1.0, 1.0]; three numbers above 0"),
        ({"image_mean": 0.5}, "image_mean: 0.5; three numbers in brackets"),
    ],
)
def test_the_error_explains_an_impossible_model(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"odd": {**SMALL, **change}}))
    with pytest.raises(ModelError) as caught:
        model_config("odd", file)
    for part in ("'odd'", str(file), message):
        assert part in str(caught.value)


def test_the_error_lists_all_missing_fields() -> None:
    with pytest.raises(ModelError, match=r"vision_width: missing\n *transformer_heads: missing"):
        model_config_from_dict("m", {k: v for k, v in SMALL.items() if k not in ("vision_width", "transformer_heads")})


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "RN50: 3\n", "a: [1\n", "\x00"])
def test_a_file_without_models_raises(tmp_path: Path, content: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ModelError, match=r"mine\.yaml"):
        available_models(file)


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*nowhere\.yaml"):
        available_models(tmp_path / "nowhere.yaml")
