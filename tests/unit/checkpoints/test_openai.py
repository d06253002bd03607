from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from lakeclip.checkpoints.convert import build_model
from lakeclip.checkpoints.openai import read_openai
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.vision_transformer import resample_position_embedding
from tests.unit.checkpoints.weights import (
    RESNET,
    SIZES,
    SMALL,
    VIT,
    features,
    random_clip,
    save,
    save_torchscript,
    to_half,
)


def weights(config: ModelConfig = VIT) -> dict[str, Tensor]:
    return random_clip(config).state_dict()


def save_safetensors(path: Path, value: dict[str, Tensor]) -> Path:
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in value.items()}, path)
    return path


FORMS: dict[str, Callable[[Path, dict[str, Tensor]], Path]] = {
    "state dict": save,
    "with OpenAI's sizes": lambda path, value: save(path, value | SIZES),
    "wrapped": lambda path, value: save(path, {"epoch": 3, "state_dict": value}),
    "wrapped and parallel": lambda path, value: save(
        path, {"state_dict": {f"module.{key}": value[key] for key in value}}
    ),
    "safetensors": save_safetensors,
    "TorchScript": lambda path, value: save_torchscript(path, value | SIZES),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("halved", [False, True], ids=["float32", "float16"])
def test_weights_become_the_same_model(tmp_path: Path, kind: str, form: str, halved: bool) -> None:
    config, given = SMALL[kind], weights(SMALL[kind])
    given = to_half(given) if halved else given
    pretrained = read_openai(FORMS[form](tmp_path / "x.pt", given))
    assert pretrained.layout == "openai"
    assert pretrained.model_config == config
    assert "logit_bias" not in pretrained.scalars
    assert not pretrained.assumed
    assert list(pretrained.state_dict) == list(random_clip(config).state_dict())
    for key, value in pretrained.state_dict.items():
        assert value.dtype == (torch.float32 if given[key].is_floating_point() else torch.int64)
        assert value.eq(given[key]).all(), key
    model = build_model(pretrained)
    assert not model.training
    if not halved:
        for mine, theirs in zip(features(model), features(random_clip(config)), strict=True):
            assert mine.equal(theirs)


def test_any_suffix_and_float16_counts_are_accepted(tmp_path: Path) -> None:
    given = {key: value.half() for key, value in weights(RESNET).items()}
    pretrained = read_openai(str(save_safetensors(tmp_path / "x.safetensors", given)))
    assert pretrained.state_dict["visual.bn1.num_batches_tracked"].dtype == torch.int64
    assert read_openai(save_safetensors(tmp_path / "x.bin", given)).model_config == RESNET
    assert read_openai(save(tmp_path / "y.weights", given)).model_config == RESNET


def test_changing_the_model_does_not_change_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", weights())
    model = build_model(read_openai(path))
    path.write_bytes(b"")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "size"), [("ViT", 16), ("ViT", 56), ("RN", 32), ("RN", 128)])
def test_another_image_size(tmp_path: Path, kind: str, size: int) -> None:
    pretrained = read_openai(save(tmp_path / "x.pt", weights(SMALL[kind])))
    model = build_model(pretrained, size)
    assert model.config == dataclasses.replace(SMALL[kind], image_resolution=size)
    images, texts = features(model)
    assert images.isfinite().all()
    assert texts.equal(features(build_model(pretrained))[1])
    changed = [key for key, value in model.state_dict().items() if not value.equal(pretrained.state_dict[key])]
    assert changed == ["visual.positional_embedding" if kind == "ViT" else "visual.attnpool.positional_embedding"]


@pytest.mark.parametrize("kind", SMALL)
def test_the_models_own_image_size_keeps_the_weights(tmp_path: Path, kind: str) -> None:
    pretrained = read_openai(save(tmp_path / "x.pt", weights(SMALL[kind])))
    same = build_model(pretrained, SMALL[kind].image_resolution)
    for mine, theirs in zip(features(same), features(random_clip(SMALL[kind])), strict=True):
        assert (mine - theirs).abs().max() == 0


def test_positions_on_a_finer_grid_keep_the_first_and_the_mean() -> None:
    embedding = torch.cat([torch.full((1, 3), 9.0), torch.rand(16, 3)])
    finer = resample_position_embedding(embedding, 8)
    assert finer.shape == (65, 3)
    assert finer[0].eq(9).all()
    torch.testing.assert_close(finer[1:].mean(dim=0), embedding[1:].mean(dim=0), rtol=0, atol=0.05)


@pytest.mark.parametrize(("kind", "size"), [("ViT", 30), ("ViT", 0), ("RN", 48)])
def test_an_invalid_image_size_raises(tmp_path: Path, kind: str, size: int) -> None:
    pretrained = read_openai(save(tmp_path / "x.pt", weights(SMALL[kind])))
    with pytest.raises(CheckpointError, match=f"images of {size} pixels") as error:
        build_model(pretrained, size)
    assert "image_resolution" in error.value.found
    assert str(SMALL[kind].image_resolution) in error.value.next_step


def test_a_missing_path_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        read_openai(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no weights at") as error:
        read_openai(tmp_path / "no/such/x.pt")
    assert "does not exist either" in error.value.found


def test_a_folder_suggests_a_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder") as error:
        read_openai(tmp_path)
    assert error.value.found == "a folder without files"
    (tmp_path / "config.json").write_text("{}")
    save(tmp_path / "ViT-B-32.pt", weights())
    with pytest.raises(CheckpointError, match="is a folder") as error:
        read_openai(tmp_path)
    assert error.value.found == "ViT-B-32.pt, config.json"
    assert error.value.next_step == f"openai:{tmp_path / 'ViT-B-32.pt'}"


def _image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (json.dumps({"embed_dim": 512, "vision_cfg": {"width": 768}}).encode(), "not a checkpoint"),
        (b'{"abc": {"d": 1}}', "not a checkpoint"),
        (_image(), "not a checkpoint"),
        (pickle.dumps({"a": 1}), "not a checkpoint"),
        (b"PK\x03\x04 and nothing else", "truncated"),
    ],
)
def test_files_of_other_kinds_raise(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_openai(tmp_path / "x.pt")
    assert message != "not a checkpoint" or "safetensors" in error.value.allowed


@pytest.mark.parametrize("data", [b"", b"abc", b"\x08\0\0\0\0\0\0\0{      }", b"\xff" * 64])
def test_the_safetensors_suffix_on_other_files_raises(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not a complete safetensors file|is empty|no weights by name"):
        read_openai(tmp_path / "x.safetensors")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.9999])
def test_a_truncated_file(tmp_path: Path, form: str, share: float) -> None:
    data = FORMS[form](tmp_path / "x.pt", weights()).read_bytes()
    (tmp_path / "x.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"truncated|not a complete safetensors file"):
        read_openai(tmp_path / "x.pt")


@pytest.mark.parametrize("form", ["state dict", "TorchScript"])
def test_bit_rot_in_the_weights(tmp_path: Path, form: str) -> None:
    path = FORMS[form](tmp_path / "x.pt", weights())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        read_openai(path)


class Bomb:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    Bomb.ran = True


def test_code_in_a_file_raises_and_is_not_run(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", weights() | {"bomb": Bomb()})
    with pytest.raises(CheckpointError, match="was refused") as error:
        read_openai(path)
    assert error.value.found.endswith("test_openai._explode")
    assert not Bomb.ran


def test_a_pickled_module_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was refused") as error:
        read_openai(save(tmp_path / "x.pt", random_clip()))
    assert "state_dict()" in error.value.next_step


def _with(path: Path, changes: dict[str, bytes]) -> Path:
    """Rewrite an archive with other content for the entries with these suffixes."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, next((new for end, new in changes.items() if name.endswith(end)), data))
    return path


def test_the_code_of_a_torchscript_archive_is_not_compiled(tmp_path: Path) -> None:
    path = _with(save_torchscript(tmp_path / "x.pt", weights()), {".py": b"this is no program"})
    with pytest.raises(RuntimeError):
        torch.jit.load(path)
    assert read_openai(path).model_config == VIT


def test_other_code_in_a_torchscript_archive_raises(tmp_path: Path) -> None:
    path = _with(save_torchscript(tmp_path / "x.pt", weights()), {"/data.pkl": pickle.dumps(Bomb())})
    with pytest.raises(CheckpointError, match="was refused") as error:
        read_openai(path)
    assert error.value.found.endswith("test_openai._explode")
    assert not Bomb.ran


@pytest.mark.parametrize("data", [b"", b"nonsense", b"R.", b"h\x05.", pickle.dumps({"a": 1}), pickle.dumps([3])])
def test_a_torchscript_archive_with_a_malformed_tree_raises(tmp_path: Path, data: bytes) -> None:
    path = _with(save_torchscript(tmp_path / "x.pt", weights()), {"/data.pkl": data})
    with pytest.raises(CheckpointError, match=r"cannot be read|was refused"):
        read_openai(path)


def test_a_torchscript_archive_with_a_storage_too_small(tmp_path: Path) -> None:
    path = _with(save_torchscript(tmp_path / "x.pt", weights()), {"/data/0": b"\0\0\0\0"})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_openai(path)


def test_torchscript_weights_equal_pytorchs(tmp_path: Path) -> None:
    given = to_half(weights(RESNET)) | SIZES
    path = save_torchscript(tmp_path / "x.pt", given)
    expected = torch.jit.load(path).state_dict()
    pretrained = read_openai(path).state_dict
    assert set(pretrained) == set(expected) - set(SIZES)
    for key, value in pretrained.items():
        assert value.eq(expected[key]).all(), key


def test_a_lakeclip_checkpoint_raises(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", {"state_dict": {f"model.{k}": v for k, v in weights().items()}, "lakeclip": {}})
    with pytest.raises(CheckpointError, match="is a checkpoint of lakeclip") as error:
        read_openai(path)
    assert error.value.next_step.endswith(str(path))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        ({}, "nothing"),
        ({"state_dict": {}}, "state_dict"),
        ({"weights": {"a": torch.zeros(1)}, "epoch": 3}, "weights, epoch"),
    ],
)
def test_torch_files_without_weights_by_name(tmp_path: Path, value: object, found: str) -> None:
    with pytest.raises(CheckpointError, match="no weights by name") as error:
        read_openai(save(tmp_path / "x.pt", value))
    assert error.value.found == found


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    given = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(10, 64)}
    with pytest.raises(CheckpointError, match="no CLIP in the layout openai") as error:
        read_openai(save(tmp_path / "x.pt", given))
    assert error.value.found.endswith("among conv1.weight, fc.weight")


@pytest.mark.parametrize(
    "key", ["visual.conv1.weight", "text_projection", "positional_embedding", "visual.ln_post.bias"]
)
def test_a_missing_key(tmp_path: Path, key: str) -> None:
    given = {name: value for name, value in weights().items() if name != key}
    with pytest.raises(CheckpointError) as error:
        read_openai(save(tmp_path / "x.pt", given))
    assert error.value.found.startswith(f"no {key}")
    assert error.value.allowed


def test_keys_that_are_missing_unknown_or_of_another_shape(tmp_path: Path) -> None:
    given = weights() | {"extra": torch.zeros(1), "visual.proj": torch.zeros(64, 7)}
    del given["transformer.resblocks.1.ln_1.bias"]
    with pytest.raises(CheckpointError, match="not those of a CLIP") as error:
        read_openai(save(tmp_path / "x.pt", given))
    problems = "no transformer.resblocks.1.ln_1.bias; unknown extra; visual.proj is (64, 7), not (64, 24)"
    assert error.value.found == problems


def test_a_block_that_is_missing_from_the_middle(tmp_path: Path) -> None:
    given = {key: value for key, value in weights().items() if not key.startswith("transformer.resblocks.1.")}
    with pytest.raises(CheckpointError, match="not those of a CLIP") as error:
        read_openai(save(tmp_path / "x.pt", given))
    assert "resblocks.1." in error.value.found
    assert "more)" in error.value.found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"visual.positional_embedding": torch.zeros(16, 64)}, "16 rows"),
        ({"visual.positional_embedding": torch.zeros(0, 64)}, "0 rows"),
        ({"visual.positional_embedding": torch.zeros(1, 64)}, "image_resolution: 0"),
        ({"visual.conv1.weight": torch.zeros(64, 192)}, "(64, 192)"),
        ({"visual.conv1.weight": torch.zeros(72, 3, 8, 8)}, "vision_width: 72"),
        ({"token_embedding.weight": torch.zeros(100, 96)}, "96 wide"),
        ({"text_projection": torch.zeros(24)}, "(24,)"),
    ],
)
def test_unsupported_sizes_raise(tmp_path: Path, changes: dict[str, Tensor], found: str) -> None:
    with pytest.raises(CheckpointError, match="sizes that lakeclip does not support") as error:
        read_openai(save(tmp_path / "x.pt", weights() | changes))
    assert found in error.value.found


def test_integer_weights_raise(tmp_path: Path) -> None:
    given = weights()
    given["ln_final.weight"] = given["ln_final.weight"].to(torch.int8)
    with pytest.raises(CheckpointError, match="not those of a CLIP") as error:
        read_openai(save(tmp_path / "x.pt", given))
    assert error.value.found == "ln_final.weight is int8"


def test_open_clip_names_raise(tmp_path: Path) -> None:
    given = {key.replace("ln_final", "text.ln_final"): value for key, value in weights().items()}
    path = save(tmp_path / "x.pt", given)
    with pytest.raises(CheckpointError, match="have open_clip's names") as error:
        read_openai(path)
    assert error.value.found == "text.ln_final.weight"
    assert error.value.next_step == f"open_clip:{path}"


def test_a_torchscript_archive_made_on_a_gpu(tmp_path: Path) -> None:
    path = save_torchscript(tmp_path / "x.pt", weights())
    with zipfile.ZipFile(path) as archive:
        tree = archive.read("x/data.pkl")
    here, there = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    assert here in tree
    pretrained = read_openai(_with(path, {"/data.pkl": tree.replace(here, there)}))
    assert {value.device.type for value in pretrained.state_dict.values()} == {"cpu"}
