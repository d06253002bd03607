"""Test that weights are found under the names and nestings that training programs write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lakeclip.checkpoints.convert import _unwrapped, read_state_dict
from lakeclip.errors import CheckpointError

WEIGHTS = {
    "visual.proj": torch.arange(6.0).reshape(2, 3),
    "module_like.weight": torch.ones(3),
    "logit_scale": torch.ones(()),
}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["module.", "_orig_mod.", "model."]), max_size=5).map("".join))
def test_prefixes_in_any_combination(prefix: str) -> None:
    assert list(_unwrapped({prefix + name: value for name, value in WEIGHTS.items()})) == list(WEIGHTS)


def test_a_compiled_tower() -> None:
    names = ("visual._orig_mod.proj", "transformer.resblocks.0._orig_mod.ln_1.weight", "logit_scale")
    assert list(_unwrapped(dict.fromkeys(names, torch.ones(1)))) == [
        *("visual.proj", "transformer.resblocks.0.ln_1.weight", "logit_scale")
    ]


def test_a_prefix_of_some_names_stays() -> None:
    assert list(_unwrapped({"model.a": torch.ones(1), "b": torch.ones(1)})) == ["model.a", "b"]


@pytest.mark.parametrize(
    "nest",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {}},
        lambda weights: {"model_state_dict": weights, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
        lambda weights: {"model": weights, "step": 7},
        lambda weights: {"module": {f"module.{name}": value for name, value in weights.items()}},
        lambda weights: {"model": {"state_dict": {f"model.{name}": value for name, value in weights.items()}}},
    ],
)
def test_nestings(nest: Callable[[dict[str, torch.Tensor]], object], tmp_path: Path) -> None:
    torch.save(nest(dict(WEIGHTS)), tmp_path / "x.pt")
    read = read_state_dict(tmp_path / "x.pt", "openai")
    assert list(read) == list(WEIGHTS)
    for name, value in WEIGHTS.items():
        torch.testing.assert_close(read[name], value, rtol=0, atol=0)


def test_shards(tmp_path: Path) -> None:
    shards = {name: f"model-{number:05}-of-00003.safetensors" for number, name in enumerate(WEIGHTS, 1)}
    for name, shard in shards.items():
        save_file({f"model.{name}": WEIGHTS[name]}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {f"model.{name}": shard for name, shard in shards.items()}})
    )
    assert sorted(read_state_dict(index, "huggingface")) == sorted(WEIGHTS)
    (tmp_path / shards["logit_scale"]).unlink()
    with pytest.raises(CheckpointError, match=r"incomplete\n.*no model-00003-of-00003.safetensors"):
        read_state_dict(index, "huggingface")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"model": {"name": "ViT"}}, {}, [1, 2], {"model": 3}])
def test_no_weights(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="contains no weights by name"):
        read_state_dict(tmp_path / "x.pt", "openai")
