"""Test that adapter folders of PEFT are merged into the model that they were trained on, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lakeclip.checkpoints.adapters import merge_adapter, read_adapter
from lakeclip.checkpoints.convert import read_state_dict
from lakeclip.errors import CheckpointError

PREFIX = "base_model.model."


@pytest.fixture
def base() -> dict[str, Tensor]:
    """Return a linear layer, a convolution and an embedding."""
    torch.manual_seed(0)
    return {
        "layers.0.q_proj.weight": torch.randn(6, 5),
        "layers.0.q_proj.bias": torch.randn(6),
        "layers.1.q_proj.weight": torch.randn(6, 5),
        "patch.weight": torch.randn(6, 3, 2, 2),
        "token.weight": torch.randn(11, 5),
    }


def write_adapter(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    """Write an adapter's two files, and a folder of its base beside it."""
    original = folder / "base"
    original.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, original / "model.safetensors")
    save_file(
        {PREFIX + name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": str(original)} | settings
    content = {name: value for name, value in content.items() if value != "absent"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def merged(folder: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    adapter = read_adapter(folder)
    return merge_adapter(adapter, base, read_state_dict(adapter.weights, "huggingface"))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"lora_alpha": 1}, 0.5),
        ({"alpha_pattern": {"0.q_proj": 10}}, 5.0),
        ({"alpha_pattern": {"1.q_proj": 10}}, 3.0),
        (
            {"lora_dropout": 0.1, "target_modules": ["q_proj"], "megatron_core": "megatron.core", "loftq_config": {}},
            3.0,
        ),
    ],
)
def test_lora(settings: dict[str, Any], scale: float, base: dict[str, Tensor], tmp_path: Path) -> None:
    a, b = torch.randn(2, 5), torch.randn(6, 2)
    folder = write_adapter(
        tmp_path / "a", {"layers.0.q_proj.lora_A.weight": a, "layers.0.q_proj.lora_B.weight": b}, **settings
    )
    result = merged(folder, base)
    torch.testing.assert_close(result["layers.0.q_proj.weight"], base["layers.0.q_proj.weight"] + scale * b @ a)
    assert set(result) == set(base)
    for name in set(base) - {"layers.0.q_proj.weight"}:
        torch.testing.assert_close(result[name], base[name], rtol=0, atol=0)


def test_convolutions_and_embeddings(base: dict[str, Tensor], tmp_path: Path) -> None:
    a, b = torch.randn(2, 3, 2, 2), torch.randn(6, 2, 1, 1)
    c, d = torch.randn(2, 11), torch.randn(5, 2)
    tensors = {"patch.lora_A.weight": a, "patch.lora_B.weight": b}
    tensors |= {"token.lora_embedding_A": c, "token.lora_embedding_B": d}
    result = merged(write_adapter(tmp_path / "a", tensors), base)
    patch = torch.einsum("or,rchw->ochw", b[:, :, 0, 0], a)
    torch.testing.assert_close(result["patch.weight"], base["patch.weight"] + 3 * patch)
    torch.testing.assert_close(result["token.weight"], base["token.weight"] + 3 * (d @ c).T)


def test_dora_keeps_the_learned_lengths(base: dict[str, Tensor], tmp_path: Path) -> None:
    a, b, lengths = torch.randn(2, 5), torch.randn(6, 2), torch.rand(6) + 0.5
    tensors = {"layers.0.q_proj.lora_A.weight": a, "layers.0.q_proj.lora_B.weight": b}
    tensors |= {"layers.0.q_proj.lora_magnitude_vector": lengths}
    weight = merged(write_adapter(tmp_path / "a", tensors, use_dora=True), base)["layers.0.q_proj.weight"]
    torch.testing.assert_close(weight.norm(dim=1), lengths)
    direction = base["layers.0.q_proj.weight"] + 3 * b @ a
    torch.testing.assert_close(weight, direction * (lengths / direction.norm(dim=1))[:, None])


@pytest.mark.parametrize(
    "name",
    ["layers.0.q_proj.bias", "layers.0.q_proj.base_layer.bias", "layers.0.q_proj.modules_to_save.default.bias"],
)
def test_whole_parameters_replace_the_base(name: str, base: dict[str, Tensor], tmp_path: Path) -> None:
    bias = torch.randn(6)
    result = merged(write_adapter(tmp_path / "a", {name: bias}, bias="all"), base)
    torch.testing.assert_close(result["layers.0.q_proj.bias"], bias)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"use_qalora": True}, "use_qalora: True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_new_setting": 3}, "a_new_setting: 3"),
    ],
)
def test_other_adapters_are_refused(settings: dict[str, Any], found: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"x": torch.zeros(1)}, **settings)
    with pytest.raises(CheckpointError, match=r"cannot be merged\n(.|\n)*next: .*merge_and_unload") as error:
        read_adapter(folder)
    assert found in error.value.found


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"layers.9.q_proj.lora_A.weight": (2, 5), "layers.9.q_proj.lora_B.weight": (6, 2)}, "layers.9"),
        ({"layers.0.q_proj.lora_A.weight": (2, 4), "layers.0.q_proj.lora_B.weight": (6, 2)}, "does not fit"),
        ({"layers.0.q_proj.lora_A.weight": (2, 5), "layers.0.q_proj.lora_B.weight": (6, 3)}, "does not fit"),
        ({"layers.0.q_proj.lora_A.weight": (2, 5)}, "does not fit"),
        ({"layers.0.q_proj.bias": (7,)}, "does not fit"),
        ({"head.weight": (7,)}, "belongs to no weight"),
        ({"layers.0.q_proj.lora_B.bias": (6,)}, "belongs to no weight"),
    ],
)
def test_tensors_that_do_not_fit(
    tensors: dict[str, tuple[int, ...]], found: str, base: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", {name: torch.ones(shape) for name, shape in tensors.items()})
    with pytest.raises(CheckpointError, match="cannot be merged into the model") as error:
        merged(folder, base)
    assert found in error.value.found


@pytest.mark.parametrize("name", ["org/name", "/gone/model", "absent", ""])
def test_a_base_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = write_adapter(tmp_path / "a", {"x": torch.zeros(1)}, base_model_name_or_path=name)
    with pytest.raises(CheckpointError, match=r"the model that it was trained on(.|\n)*next: .*merge_and_unload"):
        read_adapter(folder)


def test_a_base_beside_the_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"x": torch.zeros(1)}, base_model_name_or_path="base")
    assert read_adapter(folder).base == folder / "base"
