from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lakeclip.checkpoints.convert import NotNativeError, build_model
from lakeclip.checkpoints.open_clip import read_open_clip, write_open_clip
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from tests.unit.checkpoints.weights import RESNET, SMALL, VIT, features, random_clip, save, save_torchscript, to_half

IN_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")


def weights(config: ModelConfig = VIT) -> dict[str, Tensor]:
    return random_clip(config).state_dict()


def custom_text(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to the names of `CustomTextCLIP`."""
    return {f"text.{key}" if key.startswith(IN_TEXT) else key: value for key, value in given.items()}


def configuration(folder: Path, **changes: dict[str, Any]) -> None:
    """Write open_clip_config.json as open_clip does, with these settings of its sections changed."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 100, "width": 128, "heads": 2, "layers": 3}
    model = {"embed_dim": 24, "quick_gelu": True} | changes.get("model", {})
    model |= {"vision_cfg": vision | changes.get("vision", {}), "text_cfg": text | changes.get("text", {})}
    preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    content = {"model_cfg": model, "preprocess_cfg": preprocess | changes.get("preprocess", {})}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def training_checkpoint(given: dict[str, Tensor]) -> dict[str, Any]:
    """Return a checkpoint of open_clip's training, with optimiser state."""
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.98)}]}
    state_dict = {f"module.{key}": value for key, value in given.items()}
    return {"epoch": 3, "name": "2026_01_01-model_x", "state_dict": state_dict, "optimizer": optimizer}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("named", [dict, custom_text], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("wrap", [dict, training_checkpoint, to_half], ids=["plain", "training", "float16"])
def test_weights_become_the_same_model(tmp_path: Path, kind: str, named: Any, wrap: Any) -> None:
    pretrained = read_open_clip(save(tmp_path / "x.pt", wrap(named(weights(SMALL[kind])))))
    assert pretrained.layout == "open_clip"
    assert pretrained.model_config == SMALL[kind]
    assert list(pretrained.state_dict) == list(random_clip(SMALL[kind]).state_dict())
    if wrap is not to_half:
        for mine, theirs in zip(features(build_model(pretrained)), features(random_clip(SMALL[kind])), strict=True):
            assert mine.equal(theirs)


def test_safetensors_and_torchscript(tmp_path: Path) -> None:
    given = custom_text(weights())
    safetensors.torch.save_file(given, tmp_path / "open_clip_model.safetensors")
    assert read_open_clip(tmp_path / "open_clip_model.safetensors").model_config == VIT
    assert read_open_clip(save_torchscript(tmp_path / "x.pt", given)).model_config == VIT


def test_buffers_beside_the_weights_are_ignored(tmp_path: Path) -> None:
    mask = torch.full((12, 12), -torch.inf).triu(1)
    given = custom_text(weights()) | {"attn_mask": mask, "text.attn_mask": mask}
    pretrained = read_open_clip(save(tmp_path / "x.pt", given))
    assert set(pretrained.state_dict) == set(weights())


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_sigmoid_objectives_bias(tmp_path: Path, shape: tuple[int, ...]) -> None:
    given = random_clip(sigmoid=True).state_dict()
    given["logit_bias"] = torch.full(shape, -9.0)
    given["logit_scale"] = torch.full(shape, 2.0)
    pretrained = read_open_clip(save(tmp_path / "x.pt", given))
    assert "logit_bias" in pretrained.scalars
    model = build_model(pretrained)
    assert model.logit_bias is not None
    assert (model.logit_bias.item(), model.logit_scale.item()) == (-9, 2)


def test_another_image_size(tmp_path: Path) -> None:
    pretrained = read_open_clip(save(tmp_path / "x.pt", custom_text(weights())))
    images, _ = features(build_model(pretrained, 64))
    assert images.isfinite().all()


def test_assumptions_without_a_configuration_are_recorded(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", weights())
    assumed = " ".join(read_open_clip(path).assumed)
    assert "QuickGELU" in assumed
    assert "64 wide" in assumed
    configuration(tmp_path)
    assert read_open_clip(path).assumed == ()


def test_a_configuration_states_the_text_towers_heads(tmp_path: Path) -> None:
    config = dataclasses.replace(VIT, transformer_width=96, transformer_heads=3)
    path = save(tmp_path / "x.pt", weights(config))
    with pytest.raises(CheckpointError, match="sizes that lakeclip does not support") as error:
        read_open_clip(path)
    assert "96 wide" in error.value.found
    configuration(tmp_path, text={"heads": 3})
    assert read_open_clip(path).model_config == config
    configuration(tmp_path, text={"heads": 5})
    with pytest.raises(CheckpointError, match="sizes that lakeclip does not support"):
        read_open_clip(path)
    configuration(tmp_path, text={"heads": "many"})
    with pytest.raises(CheckpointError, match="is invalid"):
        read_open_clip(path)


@pytest.mark.parametrize("quick_gelu", [False, None])
def test_a_configuration_without_quick_gelu_means_gelu(tmp_path: Path, quick_gelu: bool | None) -> None:
    path = save(tmp_path / "x.pt", weights())
    configuration(tmp_path, model={"quick_gelu": quick_gelu})
    assert read_open_clip(path).model_config == dataclasses.replace(VIT, activation="gelu")
    bare = {"embed_dim": 24, "vision_cfg": {"width": 64}, "text_cfg": {"heads": 2}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(bare))
    assert read_open_clip(path).model_config == dataclasses.replace(VIT, activation="gelu")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(bare | {"quick_gelu": True}))
    assert read_open_clip(path).model_config == VIT


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision": {"head_width": 32}}, {"vision_heads": 2}),
        ({"vision": {"pool_type": "avg"}}, {"vision_pool": "average"}),
        ({"vision": {"norm_kwargs": {"eps": 1e-6}}, "text": {"norm_kwargs": {"eps": 1e-6}}}, {"layer_norm_eps": 1e-6}),
        ({"text": {"pool_type": "eos", "eos_id": 7}}, {"end_token": 7}),
        ({"text": {"no_causal_mask": True}}, {"causal": False}),
        (
            {"model": {"quick_gelu": False}, "text": {"act_kwargs": {"approximate": "tanh"}}},
            {"activation": "gelu", "text_activation": "gelu_tanh"},
        ),
        (
            {"preprocess": {"mean": [0.5, 0.5, 0.5], "resize_mode": "squash", "interpolation": "bilinear"}},
            {"image_mean": (0.5, 0.5, 0.5), "resize_mode": "squash", "interpolation": "bilinear"},
        ),
    ],
)
def test_settings_are_read_and_written_as_they_were(
    tmp_path: Path, changes: dict[str, dict[str, Any]], expected: dict[str, Any]
) -> None:
    path = save(tmp_path / "x.pt", weights())
    configuration(tmp_path, **changes)
    config = dataclasses.replace(VIT, **expected)
    found = read_open_clip(path)
    assert found.model_config == config
    write_open_clip(build_model(found), tmp_path / "out")
    again = read_open_clip(tmp_path / "out")
    assert again.model_config == config
    assert all(again.state_dict[name].equal(value) for name, value in found.state_dict.items())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"vision": {"norm_kwargs": {"eps": 1e-6}}}, "eps 1e-05 of texts, 1e-06 of images"),
        ({"vision": {"norm_kwargs": {"eps": 1e-6, "bias": False}}}, "norm_kwargs"),
        ({"vision": {"image_size": [32, 64]}}, "image_size [32, 64]"),
        ({"vision": {"pool_type": "none"}}, "pool_type 'none' in vision_cfg"),
        ({"vision": {"qk_norm": True}}, "qk_norm: true in vision_cfg"),
        ({"vision": {"timm_model_name": "convnext_base"}}, "timm_model_name 'convnext_base'"),
        ({"vision": {"act_kwargs": {"approximate": "tanh"}}}, "with quick_gelu"),
        ({"text": {"hf_model_name": "roberta-base"}}, 'hf_model_name: "roberta-base"'),
        ({"text": {"embed_cls": True}}, "embed_cls: true in text_cfg"),
        ({"text": {"pool_type": "none"}}, "pool_type 'none' in text_cfg"),
        ({"model": {"multimodal_cfg": {"width": 8}}}, "multimodal_cfg"),
        ({"preprocess": {"interpolation": "random"}}, "interpolation 'random'"),
        ({"preprocess": {"fill_color": 3}}, "fill_color: 3"),
    ],
)
def test_models_that_another_library_has_to_compute(
    tmp_path: Path, changes: dict[str, dict[str, Any]], found: str
) -> None:
    path = save(tmp_path / "x.pt", weights())
    configuration(tmp_path, **changes)
    with pytest.raises(NotNativeError, match="lakeclip's own model cannot compute the features") as error:
        read_open_clip(path)
    assert found in error.value.found
    assert error.value.allowed


@pytest.mark.parametrize("part", ["model", "vision", "text", "preprocess"])
def test_an_unknown_setting_is_refused(tmp_path: Path, part: str) -> None:
    path = save(tmp_path / "x.pt", weights())
    configuration(tmp_path, **{part: {"swirl": 3}})
    with pytest.raises(CheckpointError, match="a setting that lakeclip does not know") as error:
        read_open_clip(path)
    assert "swirl: 3" in error.value.found


def test_a_missing_tokenizer_is_named_when_it_is_needed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", weights())
    configuration(tmp_path, text={"hf_tokenizer_name": "google/mt5-base"})
    tokenizer = read_open_clip(path).tokenizer
    assert tokenizer is not None
    with pytest.raises(CheckpointError, match="captions cannot be tokenized") as error:
        tokenizer(["a cat"])
    assert "google/mt5-base" in error.value.found


def test_a_folder_is_enough(tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "open_clip_model.safetensors")
    configuration(tmp_path)
    assert read_open_clip(tmp_path).model_config == VIT


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"model_cfg": 3}', '{"model_cfg": {"vision_cfg": {}}}'])
def test_an_invalid_configuration_raises(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "x.pt", weights())
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"open_clip_config.json (cannot be read|is not a configuration)"):
        read_open_clip(path)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("visual.transformer.resblocks.0.ls_1.gamma", "LayerScale"),
        ("text.transformer.resblocks.0.ls_2.gamma", "LayerScale"),
        ("visual.trunk.cls_token", "an image tower of timm"),
        ("text.transformer.embeddings.word_embeddings.weight", "a text tower of Hugging Face"),
        ("text.proj.0.weight", "a text tower of Hugging Face"),
        ("text_decoder.text_projection", "CoCa"),
        ("text.cls_emb", "CoCa"),
        ("visual.attn_pool.query", "attentional pooling"),
        ("text.text_projection.bias", "a text projection with a bias"),
        ("visual.transformer.resblocks.0.attn.ln_q.weight", "normalised or scaled attention"),
        ("vision_model.embeddings.class_embedding", "a model in the layout of Hugging Face"),
    ],
)
def test_models_of_other_kinds_raise(tmp_path: Path, key: str, kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not support: {kind}") as error:
        read_open_clip(save(tmp_path / "x.pt", training_checkpoint(weights() | {key: torch.zeros(1)})))
    assert error.value.found == key
    assert error.value.allowed


def test_an_unknown_key_is_named_as_in_the_file(tmp_path: Path) -> None:
    given = custom_text(weights()) | {"text.new.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="not those of a CLIP") as error:
        read_open_clip(save(tmp_path / "x.pt", given))
    assert error.value.found == "unknown text.new.weight"


def test_both_names_for_one_weight_raise(tmp_path: Path) -> None:
    given = weights() | {"text.ln_final.bias": torch.zeros(128)}
    with pytest.raises(CheckpointError, match="not those of a CLIP") as error:
        read_open_clip(save(tmp_path / "x.pt", given))
    assert error.value.found == "unknown text.ln_final.bias"


def test_large_image_towers_have_other_heads(tmp_path: Path) -> None:
    config = dataclasses.replace(VIT, vision_width=1280, vision_layers=1)
    path = save(tmp_path / "x.pt", weights(config))
    with pytest.raises(CheckpointError, match="width 1280") as error:
        read_open_clip(path)
    assert error.value.found == "heads 80 wide"
    configuration(tmp_path, vision={"head_width": 80})
    assert read_open_clip(path).model_config == dataclasses.replace(config, vision_heads=16)
    configuration(tmp_path, vision={"head_width": 64})
    assert read_open_clip(path).model_config == config


def test_a_resnet_with_a_configuration(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", weights(RESNET))
    configuration(tmp_path, vision={"image_size": 64, "layers": [2, 1, 3, 1], "width": 16, "patch_size": None})
    assert read_open_clip(path).model_config == RESNET


def test_missing_and_damaged_files_raise(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at") as error:
        read_open_clip(tmp_path / "x.pt")
    assert error.value.allowed == "open_clip:FILE, a file of weights"
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        read_open_clip(tmp_path / "x.pt")
