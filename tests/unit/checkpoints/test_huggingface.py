"""Test that models written by transformers compute the same features here, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, CLIPModel, PretrainedConfig

from lakeclip.checkpoints.convert import NotNativeError, build_model
from lakeclip.checkpoints.exports import export
from lakeclip.checkpoints.huggingface import read_huggingface, write_huggingface
from lakeclip.checkpoints.layouts import load, load_weights
from lakeclip.checkpoints.parity import check_against_transformers
from lakeclip.errors import CheckpointError
from tests.parity_matrix import TOLERANCE, check_row
from tests.unit.checkpoints.huggingface_models import (
    change_config,
    difference,
    read_model,
    write_clip,
    write_processor,
    write_siglip,
    write_word_tokenizer,
)

#: Changes of the two towers, under which the features stay equal.
CLIP_CASES: dict[str, dict[str, dict[str, Any]]] = {
    "as OpenAI's": {},
    "gelu": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
    "two activations": {"text": {"hidden_act": "gelu"}},
    "gelu_new": {"text": {"hidden_act": "gelu_new"}, "vision": {"hidden_act": "gelu_pytorch_tanh"}},
    "heads 80 wide": {"vision": {"hidden_size": 160, "num_attention_heads": 2, "intermediate_size": 640}},
    "one head": {"text": {"num_attention_heads": 1}, "vision": {"num_attention_heads": 1}},
    "eps 1e-6": {"text": {"layer_norm_eps": 1e-6}, "vision": {"layer_norm_eps": 1e-6}},
    "eps 0.1": {"text": {"layer_norm_eps": 0.1}, "vision": {"layer_norm_eps": 0.1}},
    "narrow mlp": {"text": {"intermediate_size": 40}, "vision": {"intermediate_size": 72}},
    "end token 7": {"text": {"eos_token_id": 7}},
    "end token 2": {"text": {"eos_token_id": 2}},
    "40 pixels, patches of 10": {"vision": {"image_size": 40, "patch_size": 10}},
}
SIGLIP_CASES: dict[str, dict[str, dict[str, Any]]] = {
    "as Google's": {},
    "gelu": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
    "eps 1e-5": {"text": {"layer_norm_eps": 1e-5}, "vision": {"layer_norm_eps": 1e-5}},
    "mlp as in SO400M": {"text": {"intermediate_size": 359}, "vision": {"intermediate_size": 359}},
    "other widths": {"text": {"hidden_size": 64, "projection_size": 96}},
    "rest of a patch": {"vision": {"image_size": 38, "patch_size": 8}},
}


def scalars(model: Any) -> tuple[float, float]:
    return float(model.logit_scale.detach()), float(model.logit_bias.detach())


@pytest.mark.parametrize("name", CLIP_CASES)
def test_clip(name: str, tmp_path: Path) -> None:
    theirs = write_clip(tmp_path, **CLIP_CASES[name])
    ours = read_model(tmp_path)
    assert float(ours.logit_scale.detach()) == float(theirs.logit_scale.detach())
    write_huggingface(ours, tmp_path / "back")
    back = AutoModel.from_pretrained(tmp_path / "back").eval()
    check_row("transformers", f"CLIP: {name}", read=difference(ours, theirs), written=difference(ours, back))


@pytest.mark.parametrize("name", SIGLIP_CASES)
def test_siglip(name: str, tmp_path: Path) -> None:
    theirs = write_siglip(tmp_path, **SIGLIP_CASES[name])
    ours = read_model(tmp_path)
    assert scalars(ours) == scalars(theirs)
    write_huggingface(ours, tmp_path / "back")
    back = AutoModel.from_pretrained(tmp_path / "back").eval()
    check_row("transformers", f"SigLIP: {name}", read=difference(ours, theirs), written=difference(ours, back))
    assert scalars(back) == scalars(theirs)


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_missing_fields_have_the_defaults_of_transformers(write: Any, tmp_path: Path) -> None:
    """Check that only fields which equal the defaults may be left out, as older versions of transformers did."""
    theirs = write(tmp_path)
    file = tmp_path / "config.json"
    content, defaults = json.loads(file.read_text()), type(theirs.config)().to_dict()
    for part in ("text_config", "vision_config"):
        kept = {name: value for name, value in content[part].items() if value != defaults[part].get(name)}
        assert len(kept) < len(content[part])
        content[part] = kept
    file.write_text(json.dumps(content))
    assert difference(read_model(tmp_path), theirs) <= TOLERANCE


@pytest.mark.parametrize("earlier", [{"eos_token_id": 7}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}, {}])
def test_the_configuration_of_early_versions(earlier: dict[str, Any], tmp_path: Path) -> None:
    """Check that `text_config_dict` replaces `text_config`, with the defaults of what it lacks."""
    write_clip(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    sizes = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_attention_heads")
    text = {name: content["text_config"][name] for name in (*sizes, "num_hidden_layers", "eos_token_id")}
    vision = {name: value for name, value in content["vision_config"].items() if isinstance(value, int)} | earlier
    change_config(tmp_path, text_config_dict=text | earlier, vision_config_dict=vision)
    change_config(tmp_path, "text_config", hidden_act="relu", num_attention_heads=1, layer_norm_eps=0.5)
    change_config(tmp_path, "vision_config", hidden_act="silu", num_attention_heads=1)
    assert difference(read_model(tmp_path), CLIPModel.from_pretrained(tmp_path).eval()) <= TOLERANCE


@pytest.mark.parametrize("form", ["shards", "module.", "_orig_mod.module.", "bin", "bfloat16", "file", "nested"])
def test_forms_of_weights(form: str, tmp_path: Path) -> None:
    theirs = write_clip(tmp_path, **({"max_shard_size": "100KB"} if form == "shards" else {}))
    path = tmp_path
    if form != "shards":
        weights = load_file(tmp_path / "model.safetensors")
        if form.endswith("."):
            save_file({form + name: value for name, value in weights.items()}, tmp_path / "model.safetensors")
        elif form == "bfloat16":
            theirs = theirs.bfloat16().float()
            save_file({name: value.bfloat16() for name, value in weights.items()}, tmp_path / "model.safetensors")
        elif form == "file":
            path = tmp_path / "model.safetensors"
        else:
            (tmp_path / "model.safetensors").unlink()
            torch.save({"model_state_dict": weights} if form == "nested" else weights, tmp_path / "pytorch_model.bin")
    else:
        assert not (tmp_path / "model.safetensors").exists()
    assert difference(read_model(path), theirs) <= TOLERANCE


def test_an_adapter_folder(tmp_path: Path) -> None:
    theirs = write_clip(tmp_path / "base")
    a, b = torch.randn(2, 96), torch.randn(96, 2)
    layer = "vision_model.encoder.layers.1.self_attn.q_proj"
    (tmp_path / "lora").mkdir()
    tensors = {f"base_model.model.{layer}.lora_A.weight": a, f"base_model.model.{layer}.lora_B.weight": b}
    save_file(tensors, tmp_path / "lora/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "lora_alpha": 1, "r": 2, "base_model_name_or_path": "../base"}
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(settings))
    before = difference(read_model(tmp_path / "lora"), theirs)
    theirs.get_submodule(layer).weight.data += 0.5 * b @ a
    assert difference(read_model(tmp_path / "lora"), theirs) <= TOLERANCE < before


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_the_check_against_transformers(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    check = check_against_transformers(read_huggingface(tmp_path))
    assert check is not None
    assert check.library.startswith("transformers ")
    assert check.difference <= TOLERANCE
    pretrained = read_huggingface(tmp_path)
    pretrained.state_dict["positional_embedding"] = pretrained.state_dict["positional_embedding"].flip(0)
    with pytest.raises(CheckpointError, match=r"different features(.|\n)*by transformers"):
        check_against_transformers(pretrained)


@pytest.mark.parametrize(
    ("part", "values", "found"),
    [
        (None, {"model_type": "siglip2"}, "NaFlex"),
        (None, {"model_type": "align"}, "model_type 'align'"),
        ("vision_config", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-05 of texts, 1e-06 of images"),
        ("vision_config", {"hidden_act": "silu"}, "hidden_act 'silu' in vision_config"),
        ("vision_config", {"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ("vision_config", {"num_channels": 4}, "num_channels 4"),
        ("text_config", {"model_type": "bert"}, "model_type 'bert' in text_config"),
    ],
)
def test_models_that_another_library_has_to_compute(
    part: str | None, values: dict[str, Any], found: str, tmp_path: Path
) -> None:
    write_clip(tmp_path)
    change_config(tmp_path, part, **values)
    with pytest.raises(NotNativeError) as error:
        load_weights(f"huggingface:{tmp_path}")
    assert found in error.value.found


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (None, {"use_swiglu": True}, "does not know(.|\n)*use_swiglu: true"),
        ("vision_config", {"register_tokens": 4}, "does not know(.|\n)*register_tokens: 4 in vision_config"),
        ("text_config", {"rope_theta": 1e4}, "does not know(.|\n)*rope_theta"),
        ("text_config", {"num_attention_heads": "8"}, 'num_attention_heads: "8" in text_config'),
        ("text_config", {"num_attention_heads": 0}, "num_attention_heads: 0"),
        ("text_config", {"num_attention_heads": 5}, "transformer_heads: 5"),
        ("text_config", {"layer_norm_eps": True}, "layer_norm_eps: true"),
        ("text_config", {"eos_token_id": 100}, "which token ends a text(.|\n)*100 in a vocabulary of 100"),
        ("text_config", {"eos_token_id": [99, 2]}, "eos_token_id"),
        ("text_config", {"hidden_size": 32}, "is not those|are not those"),
        ("vision_config", {"image_size": 64}, r"visual.positional_embedding is \(17, 96\), not \(65, 96\)"),
        ("vision_config", {"num_hidden_layers": 2}, "unknown visual.transformer.resblocks.2"),
        (None, {"vision_config": 3}, "vision_config is not an object"),
        (None, {"model_type": "clip_text_model"}, "one tower"),
    ],
)
def test_what_is_unknown_or_does_not_fit_is_refused(
    part: str | None, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_clip(tmp_path)
    change_config(tmp_path, part, **values)
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(f"huggingface:{tmp_path}")
    assert not isinstance(error.value, NotNativeError)


def test_fields_without_effect_are_ignored(tmp_path: Path) -> None:
    theirs = write_clip(tmp_path)
    change_config(
        tmp_path, "text_config", top_k=50, id2label={"0": "a"}, pruned_heads={}, new_field=None, use_cache=True
    )
    assert difference(read_model(tmp_path), theirs) <= TOLERANCE


def test_all_fields_that_every_configuration_has_are_known(tmp_path: Path) -> None:
    """Check the fields of transformers' base class, which older versions wrote into every file and every part."""
    theirs = write_clip(tmp_path)
    common = {name: value for name, value in PretrainedConfig().to_dict().items() if name != "model_type"}
    for part in (None, "text_config", "vision_config"):
        change_config(tmp_path, part, **common)
    change_config(tmp_path, "text_config", eos_token_id=99)
    assert difference(read_model(tmp_path), theirs) <= TOLERANCE


def test_a_siglip_without_a_pooling_head(tmp_path: Path) -> None:
    write_siglip(tmp_path, vision={"vision_use_head": False})
    with pytest.raises(NotNativeError, match="vision_use_head"):
        read_huggingface(tmp_path)


def test_a_siglip_whose_features_differ_in_size(tmp_path: Path) -> None:
    write_siglip(tmp_path, text={"projection_size": 64})
    with pytest.raises(CheckpointError, match="texts of 64 dimensions"):
        read_huggingface(tmp_path)


def test_a_folder_inside_a_folder(tmp_path: Path) -> None:
    """Check the advice for sentence-transformers' folders, which have the model in a folder of their own."""
    write_clip(tmp_path / "0_CLIPModel")
    with pytest.raises(CheckpointError, match=r"no config.json(.|\n)*next: +huggingface:.*0_CLIPModel"):
        load_weights(f"huggingface:{tmp_path}")


def test_weights_with_an_adapter_inside(tmp_path: Path) -> None:
    write_clip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["text_model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(1)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"with an adapter(.|\n)*merge_and_unload"):
        read_huggingface(tmp_path)


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_an_export_with_tokenizer_and_processor(write: Any, tmp_path: Path) -> None:
    """Check that transformers prepares captions and images as lakeclip does, and computes the same logits."""
    write(tmp_path / "a", text={"eos_token_id": 2})
    words = write_word_tokenizer(tmp_path / "a")
    write_processor(tmp_path / "a", size=32, crop_size=32, do_center_crop=True, image_mean=[0.4, 0.5, 0.6])
    loaded = load(f"huggingface:{tmp_path}/a")
    export(f"huggingface:{tmp_path}/a", "huggingface", tmp_path / "b")
    processor = AutoProcessor.from_pretrained(tmp_path / "b", local_files_only=True)
    theirs = AutoModel.from_pretrained(tmp_path / "b", local_files_only=True).eval()
    captions = ["a photo of dog", "dog", "a dog of dog of dog of dog of dog of dog of dog"]
    image = Image.new("RGB", (32, 32), (200, 30, 90))
    inputs = processor(text=captions, images=image, padding="max_length", truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (3, 12)
    expected = words(captions, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    with torch.no_grad():
        logits = theirs(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits_per_image
        ours, _ = loaded.model(loaded.transform(image)[None], inputs["input_ids"])
    torch.testing.assert_close(ours, logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_export_and_back(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "a", vision={"hidden_act": "gelu"}, text={"hidden_act": "gelu"})
    mean = [0.5, 0.4, 0.3]
    write_processor(tmp_path / "a", size={"height": 32, "width": 32}, do_center_crop=False, resample=2, image_mean=mean)
    ours = read_model(tmp_path / "a")
    done = export(ours, "huggingface", tmp_path / "b")
    assert done.difference <= TOLERANCE
    back = read_model(tmp_path / "b")
    assert back.config == ours.config
    assert (back.config.resize_mode, back.config.interpolation, back.config.image_mean) == (
        *("squash", "bilinear"),
        (0.5, 0.4, 0.3),
    )
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value, rtol=0, atol=0)


def test_another_image_size_of_a_model_without_a_class_token(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    pretrained = read_huggingface(tmp_path)
    pretrained.state_dict["visual.positional_embedding"] = torch.arange(16.0)[:, None].repeat(1, 96)
    larger = build_model(pretrained, 64)
    positions = larger.visual.positional_embedding
    assert positions.shape == (64, 96)
    # The grid's rows go on to differ by 4 and its columns by 1, now in half as large steps.
    grid = positions.detach()[:, 0].reshape(8, 8)[2:6, 2:6]
    torch.testing.assert_close(grid.diff(dim=0), torch.full((3, 4), 2.0), rtol=0, atol=0.2)
    torch.testing.assert_close(grid.diff(dim=1), torch.full((4, 3), 0.5), rtol=0, atol=0.2)
    assert larger.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 96)
