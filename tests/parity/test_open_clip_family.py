"""Tests that models of open_clip of every kind give the same features here, and that open_clip reads what is written.

Each model has random weights; the sizes are small, the ratios are those of the models named. timm's tower has its size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lakeclip.checkpoints.convert import build_model
from lakeclip.checkpoints.layouts import load, load_weights
from lakeclip.checkpoints.open_clip import write_open_clip
from lakeclip.checkpoints.parity import check_against_original, random_inputs
from lakeclip.cli.app import main
from lakeclip.models.clip import CLIP
from tests.parity_matrix import check_row
from tests.unit.checkpoints.huggingface_models import write_word_tokenizer

open_clip = pytest.importorskip("open_clip")

VISION = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
TIMM = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none", "image_size": 224}

#: Name → changes of the model's, the image tower's and the text tower's configuration.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "LAION ViT-B/32 (GELU)": ({}, {}, {}),
    "MetaCLIP and DFN (QuickGELU)": ({"quick_gelu": True}, {}, {}),
    "ViT-H/14 (heads 80 wide)": ({}, {"width": 160, "head_width": 80}, {}),
    "ViT-g/14 (heads 88 wide, other MLPs)": ({}, {"width": 176, "head_width": 88, "mlp_ratio": 4.3637}, {}),
    "bigG/14": ({}, {"width": 208, "head_width": 104, "mlp_ratio": 4.9231}, {}),
    "average pooling": ({}, {"pool_type": "avg", "no_ln_pre": True}, {}),
    "end token": ({}, {}, {"pool_type": "eos", "eos_id": 49407}),
    "bidirectional text": ({}, {}, SIGLIP | {"norm_kwargs": None}),
    "ResNet with GELU": ({}, {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}, {}),
    "SigLIP ViT-B/16": ({"embed_dim": 768, "custom_text": True, "init_logit_bias": -10}, TIMM, SIGLIP),
    "SigLIP 2 ViT-B/16": (
        {"embed_dim": 768, "custom_text": True, "init_logit_bias": -10},
        TIMM,
        SIGLIP | {"act_kwargs": {"approximate": "tanh"}},
    ),
}


def open_clip_folder(folder: Path, name: str) -> Any:
    """Write a model of open_clip with random weights as it publishes them, and return it."""
    model, vision, text = MODELS[name]
    vision = vision if "timm_model_name" in vision else VISION | vision
    if isinstance(vision.get("layers"), list):
        vision = {key: value for key, value in vision.items() if key != "patch_size"}
    content = {"embed_dim": 24} | model | {"vision_cfg": vision, "text_cfg": TEXT | text}
    kind = open_clip.CustomTextCLIP if content.get("custom_text") else open_clip.CLIP
    torch.manual_seed(0)
    theirs = kind(**{key: value for key, value in content.items() if key != "custom_text"})
    for parameter in theirs.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": content, "preprocess_cfg": {}}))
    return theirs.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_features_in_both_directions(name: str, tmp_path: Path) -> None:
    theirs = open_clip_folder(tmp_path / "theirs", name)
    ours = build_model(load_weights(f"open_clip:{tmp_path}/theirs"))
    check = check_against_original(load_weights(f"open_clip:{tmp_path}/theirs"))
    assert check is not None
    assert check.difference <= 1e-5
    assert check.library.startswith("open_clip 3.")
    images, ids = random_inputs(ours.config)
    write_open_clip(ours, tmp_path / "ours")
    again = open_clip.create_model(f"local-dir:{tmp_path}/ours").eval()
    differences = []
    for model in (theirs, again):
        pairs = [
            (ours.encode_image(images), model.encode_image(images)),
            (ours.encode_text(ids), model.encode_text(ids)),
        ]
        differences.append(max(float((one - another).abs().max()) for one, another in pairs))
        for one, another in pairs:
            torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-5)
        assert ours.logit_scale.item() == pytest.approx(model.logit_scale.item())
        if ours.logit_bias is not None:
            assert ours.logit_bias.item() == pytest.approx(model.logit_bias.item())
    check_row("open_clip_torch", name, read=differences[0], written=differences[1])


@pytest.mark.parametrize("name", ["LAION ViT-B/32 (GELU)", "SigLIP ViT-B/16"])
def test_fine_tuned_and_exported_it_is_read_by_open_clip(name: str, pairs_lake: Path, tmp_path: Path) -> None:
    start, captions = tmp_path / "start", ["a red circle", "<b>The_Blue</b> square, and a green triangle!"]
    open_clip_folder(start, name)
    if "SigLIP" in name:
        content = json.loads((start / "open_clip_config.json").read_text())
        tokenizer = {"hf_tokenizer_name": str(start), "tokenizer_kwargs": {"clean": "canonicalize"}}
        content["model_cfg"]["text_cfg"] |= tokenizer
        content["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
        (start / "open_clip_config.json").write_text(json.dumps(content))
        write_word_tokenizer(start, extra=("red", "blue", "green", "circle", "square", "triangle", "on", "the", "and"))
    data = ["--lake", str(pairs_lake), "--batch-size", "4", "--num-workers", "0", "--max-steps", "1"]
    place = ["--runs", str(tmp_path), "--name", "tuned", "--accelerator", "cpu", "--lr", "1e-4"]
    main(["finetune", "--from", f"open_clip:{start}", *data, *place])
    main(["export", "--checkpoint", str(tmp_path / "tuned"), "--to", "open_clip", "--out", str(tmp_path / "out")])

    tuned, before = load(tmp_path / "tuned"), load(f"open_clip:{start}")
    assert isinstance(tuned.model, CLIP)
    assert isinstance(before.model, CLIP)
    assert tuned.model.config == before.model.config
    assert not torch.equal(tuned.model.visual.conv1.weight, before.model.visual.conv1.weight)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/out")
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}/out")(captions)
    assert torch.equal(ids, tuned.tokenize(captions))
    image = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    pixels = preprocess(image)[None]
    with torch.no_grad():
        for model in (tuned.model, theirs.eval()):
            model.requires_grad_(False)
        torch.testing.assert_close(tuned.model.encode_image(pixels), theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tuned.model.encode_text(ids), theirs.encode_text(ids), rtol=1e-5, atol=1e-5)
        features = tuned.model.encode_image(tuned.transform(image)[None])
        torch.testing.assert_close(tuned.model.encode_image(pixels), features, rtol=0.02, atol=0.02)
