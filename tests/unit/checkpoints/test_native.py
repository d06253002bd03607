from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lakeclip.checkpoints.folder import find_checkpoint
from lakeclip.checkpoints.layouts import load
from lakeclip.checkpoints.native import Checkpoint, build_model, read_checkpoint
from lakeclip.config.schema import DataConfig, ModelConfig, TrainConfig
from lakeclip.errors import CheckpointError
from lakeclip.ingestion.sources.synthetic import scenes
from lakeclip.models.clip import CLIP
from lakeclip.provenance.lineage import make_lineage
from lakeclip.text.tokenizer import Tokenizer
from tests.conftest import TINY

TINY_RESNET = dataclasses.replace(TINY, vision_layers=(1, 1, 1, 1), vision_width=16, vision_patch_size=None)


def checkpoint_content(config: ModelConfig = TINY, **changes: Any) -> dict[str, Any]:
    """Return the content of a training checkpoint, with Lightning's entries that matter here."""
    torch.manual_seed(0)
    state_dict = {f"model.{key}": value for key, value in CLIP(config).state_dict().items()}
    entry = make_lineage(
        model_name="tiny",
        model_config=config,
        tokenizer=Tokenizer(config.context_length),
        data={"path": "/lakes/x", "version": "abc@3", "query": "width > 50", "rows": 1000},
        config=TrainConfig(model="tiny", data=DataConfig(lake="/lakes/x")),
        progress={"step": 10, "epoch": 1, "samples_seen": 640, "seconds": 12.5},
    )
    return {
        "state_dict": state_dict,
        "lakeclip": entry,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.98)}]}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_k_models": {}}},
        "epoch": 1,
    } | changes


def save(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(tmp_path / "run/checkpoints/last.ckpt", checkpoint_content())
    return tmp_path / "run"


@pytest.mark.parametrize("config", [TINY, TINY_RESNET], ids=["ViT", "RN"])
def test_a_loaded_model_is_ready_to_encode(tmp_path: Path, config: ModelConfig) -> None:
    path = save(tmp_path / "x.ckpt", checkpoint_content(config))
    model, tokenize, transform = load(path)
    torch.manual_seed(0)
    original = CLIP(config).eval()
    assert not model.training
    assert model.config == config
    image = transform(next(iter(scenes("train", 1))).image)
    assert image.shape == (3, 32, 32)
    ids = tokenize(["a photo of a dog"])
    assert ids.shape == (1, 24)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(image[None]), original.encode_image(image[None]))
        torch.testing.assert_close(model.encode_text(ids), original.encode_text(ids))


def test_changing_the_model_does_not_change_the_file(run: Path) -> None:
    model = load(run).model
    (run / "checkpoints/last.ckpt").write_bytes(b"")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_lineage_records_the_origin_of_the_weights(run: Path) -> None:
    checkpoint = read_checkpoint(run)
    assert checkpoint.path == run / "checkpoints/last.ckpt"
    assert checkpoint.model_config == TINY
    assert set(checkpoint.state_dict) == set(CLIP(TINY).state_dict())
    assert checkpoint.lineage["format"] == 1
    assert checkpoint.lineage["model"]["name"] == "tiny"
    assert checkpoint.lineage["image_size"] == 32
    tokenizer = {"kind": "clip-bpe", "fingerprint": Tokenizer.fingerprint, "context_length": 24}
    assert checkpoint.lineage["tokenizer"] == tokenizer
    assert checkpoint.lineage["data"] == {"path": "/lakes/x", "version": "abc@3", "query": "width > 50", "rows": 1000}
    assert checkpoint.lineage["config"]["data"]["lake"] == "/lakes/x"
    assert checkpoint.lineage["progress"] == {
        "step": 10,
        "epoch": 1,
        "samples_seen": 640,
        "seconds": 12.5,
    }


def test_a_run_loads_its_best_checkpoint_or_else_its_last(run: Path) -> None:
    assert find_checkpoint(run) == run / "checkpoints/last.ckpt"
    save(run / "checkpoints/best.ckpt", checkpoint_content())
    assert find_checkpoint(run) == run / "checkpoints/best.ckpt"
    assert find_checkpoint(str(run / "checkpoints/last.ckpt")) == run / "checkpoints/last.ckpt"


def test_a_missing_path_raises(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at") as error:
        load(tmp_path / "rnu")
    assert str(run) in error.value.next_step
    with pytest.raises(CheckpointError, match="no checkpoint at") as error:
        load(tmp_path / "no/such/folder")
    assert "does not exist either" in error.value.found


def test_a_folder_that_is_no_run_lists_its_content(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a run") as error:
        load(tmp_path / "empty")
    assert error.value.found == "an empty folder"
    with pytest.raises(CheckpointError, match="not a run") as error:
        load(tmp_path)
    assert "run/" in error.value.found
    assert str(run) in error.value.next_step


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is a text", "not a checkpoint"),
        (pickle.dumps({"a": 1}), "not a checkpoint"),
        (b"PK\x03\x04 and nothing else", "truncated"),
    ],
)
def test_files_of_other_kinds_raise(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "x.ckpt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file(run: Path, share: float) -> None:
    path = run / "checkpoints/last.ckpt"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="truncated"):
        load(run)


def test_bit_rot_in_the_weights(run: Path) -> None:
    path = run / "checkpoints/last.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load(run)


def test_a_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "x.ckpt")


class Bomb:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    Bomb.ran = True


def test_code_in_a_file_raises_and_is_not_run(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", checkpoint_content(bomb=Bomb()))
    with pytest.raises(CheckpointError, match="was refused") as error:
        load(path)
    assert "_explode" in error.value.found
    assert not Bomb.ran


@pytest.mark.parametrize("value", [{"state_dict": {}}, {}, [1, 2], torch.zeros(3), {"lakeclip": 3}])
def test_a_torch_file_without_lineage(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of lakeclip"):
        load(save(tmp_path / "x.ckpt", value))


def test_custom_towers_raise(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="custom towers"):
        load(save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=None)))


def test_a_newer_format_raises(tmp_path: Path) -> None:
    entry = checkpoint_content()["lakeclip"] | {"format": 2, "version": "9.0"}
    with pytest.raises(CheckpointError, match="cannot read") as error:
        load(save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=entry)))
    assert error.value.found == "format 2, written by lakeclip 9.0"


def test_an_incomplete_lineage(tmp_path: Path) -> None:
    entry = checkpoint_content()["lakeclip"]
    del entry["data"]
    del entry["model"]["name"]
    with pytest.raises(CheckpointError, match="incomplete") as error:
        load(save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=entry)))
    assert error.value.found == "without model.name, data"


def test_invalid_model_fields_raise(tmp_path: Path) -> None:
    entry = checkpoint_content()["lakeclip"]
    entry["model"]["config"]["depth"] = entry["model"]["config"].pop("embed_dim")
    with pytest.raises(CheckpointError, match="does not describe its model") as error:
        load(save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=entry)))
    assert error.value.found == "no embed_dim; unknown depth"


def test_a_different_model_lists_the_differences(run: Path) -> None:
    read_checkpoint(run).require_model(TINY)
    with pytest.raises(CheckpointError, match="a different model, tiny") as error:
        read_checkpoint(run).require_model(dataclasses.replace(TINY, embed_dim=32, vision_layers=12))
    assert error.value.found == "embed_dim 16, vision_layers 1"
    assert error.value.allowed == "embed_dim 32, vision_layers 12"


def _without(state_dict: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if name != key}


def test_weights_that_do_not_match_the_sizes(tmp_path: Path) -> None:
    weights = _without(checkpoint_content()["state_dict"], "model.ln_final.bias")
    weights |= {"model.extra": torch.zeros(1), "model.text_projection": torch.zeros(8, 4)}
    with pytest.raises(CheckpointError, match="do not fit its model, tiny") as error:
        load(save(tmp_path / "x.ckpt", checkpoint_content(state_dict=weights)))
    assert error.value.found == "no ln_final.bias; unknown extra; text_projection is (8, 4), not (8, 16)"


@pytest.mark.parametrize("weights", [{}, None, {"net.weight": torch.zeros(1)}])
def test_no_weights_of_a_model(tmp_path: Path, weights: object) -> None:
    with pytest.raises(CheckpointError, match="contains no model"):
        load(save(tmp_path / "x.ckpt", checkpoint_content(state_dict=weights)))


def test_impossible_sizes(run: Path) -> None:
    checkpoint = read_checkpoint(run)
    wrong = Checkpoint(
        checkpoint.path, checkpoint.lineage, dataclasses.replace(TINY, vision_patch_size=None), checkpoint.state_dict
    )
    with pytest.raises(CheckpointError, match="sizes that no model can have"):
        build_model(wrong)


def test_a_different_tokenizer_raises(tmp_path: Path) -> None:
    entry = checkpoint_content()["lakeclip"]
    entry["tokenizer"]["fingerprint"] = "0" * 64
    with pytest.raises(CheckpointError, match="a different tokenizer"):
        load(save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=entry)))


def test_token_ids_of_a_custom_dataloader_raise(tmp_path: Path) -> None:
    entry = checkpoint_content()["lakeclip"]
    entry["tokenizer"] = {"kind": "own", "fingerprint": "", "context_length": 24}
    path = save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=entry))
    with pytest.raises(CheckpointError, match="custom dataloader"):
        load(path)
    assert read_checkpoint(path).state_dict


def test_a_lineage_without_a_lake_or_tokenizer_is_plain(tmp_path: Path) -> None:
    entry = make_lineage(
        model_name="RN",
        model_config=TINY_RESNET,
        tokenizer=None,
        data={"path": "", "version": "", "query": None, "rows": 0},
        config=TrainConfig(),
        progress={"step": 0, "epoch": 0, "samples_seen": 0},
    )
    path = save(tmp_path / "x.ckpt", checkpoint_content(TINY_RESNET, lakeclip=entry))
    assert read_checkpoint(path).model_config.vision_layers == (1, 1, 1, 1)
