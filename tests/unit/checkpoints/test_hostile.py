"""Test malicious weight files."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lakeclip.checkpoints.file import read_torch_file, read_weights_file
from lakeclip.checkpoints.huggingface import read_huggingface
from lakeclip.checkpoints.native import build_model, read_checkpoint
from lakeclip.errors import CheckpointError, ConfigError, ModelError
from lakeclip.models.pretrained import rebuild_image_encoder
from tests.unit.checkpoints.test_native import checkpoint_content, save


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def test_a_towers_library_cannot_be_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_library.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="unknown library"):
        rebuild_image_encoder({"library": "evil_library", "name": "x", "config": {}})
    assert "evil_library" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_unpacks_to_far_more_raises(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", {"data.pkl": bytes(80 * 2**20), "constants.pkl": b""})
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="unpacks to far more"):
        read_weights_file(path, allowed="weights")


def test_a_torchscript_archive_is_not_a_checkpoint(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.ckpt", {"data.pkl": b"\x80\x02).", "constants.pkl": b"\x80\x02)."})
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        read_torch_file(path, allowed="a .ckpt file")


def test_a_large_memo_index_allocates_no_memory(tmp_path: Path) -> None:
    tree = b"\x80\x02K\x01r\xff\xff\xff\x7f0)."
    path = write_zip(tmp_path / "x.pt", {"data.pkl": tree, "constants.pkl": b""})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights_file(path, allowed="weights")


class _Runs:
    """A pickle that calls any function with any arguments."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("read", [read_checkpoint, lambda path: read_weights_file(path, allowed="weights")])
@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin"])
def test_a_pickle_is_never_run(tmp_path: Path, read: Callable[[Path], Any], name: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / name
    torch.save(checkpoint_content(lakeclip=_Runs(ran)), path)
    with pytest.raises(CheckpointError, match="could run code"):
        read(path)
    path.write_bytes(pickle.dumps(_Runs(ran)))  # as PyTorch wrote before 1.6, and joblib does
    with pytest.raises(CheckpointError):
        read(path)
    assert not ran.exists()


def test_tensors_that_claim_more_data_than_the_file_raise(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", checkpoint_content(extra=torch.zeros(1).expand(2**40)))
    for read in (read_torch_file, read_weights_file):
        with pytest.raises(CheckpointError, match="claim far more"):
            read(path, allowed="weights")


def test_tensors_may_be_shared(tmp_path: Path) -> None:
    shared = torch.rand(1000)
    path = save(tmp_path / "x.pt", {"a": shared, "b": shared, "c": [shared[:500]]})
    assert len(read_torch_file(path, allowed="weights")) == 3


@pytest.mark.parametrize(
    "sizes", [{"vision_layers": 10**9}, {"transformer_layers": 10**9}, {"vision_layers": (1, 1, 1, 10**9)}]
)
def test_layers_without_weights_are_not_built(tmp_path: Path, sizes: dict[str, Any]) -> None:
    entry = copy.deepcopy(checkpoint_content()["lakeclip"])
    entry["model"]["config"].update(sizes)
    with pytest.raises(CheckpointError, match="sizes that its weights do not have"):
        build_model(read_checkpoint(save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=entry))))


@pytest.mark.parametrize("sizes", [{"vocab_size": 10**10}, {"embed_dim": 10**9}, {"image_resolution": 2**20}])
def test_sizes_without_weights_allocate_no_memory(tmp_path: Path, sizes: dict[str, Any]) -> None:
    entry = copy.deepcopy(checkpoint_content()["lakeclip"])
    entry["model"]["config"].update(sizes)
    path = save(tmp_path / "x.ckpt", checkpoint_content(lakeclip=entry))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"do not fit|no model can have"):
        build_model(read_checkpoint(path))
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


def test_nested_shared_modules_terminate(tmp_path: Path) -> None:
    tree = b"\x80\x02c__torch__\nM\n)\x81q\x00"
    for level in range(60):  # each level contains the previous one under two names
        tree += b"0c__torch__\nM\n)\x81}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cubq%c" % (level, level, level + 1)
    path = write_zip(tmp_path / "x.pt", {"data.pkl": tree + b".", "constants.pkl": b""})
    with pytest.raises(CheckpointError, match="more than any model has"):
        read_weights_file(path, allowed="weights")


@pytest.mark.parametrize(
    "config",
    [
        [],
        "clip",
        {"model_type": "clip", "text_config": [1]},
        {"model_type": "clip", "text_config": {"num_attention_heads": 0}},
        {"model_type": "clip", "text_config": {"num_attention_heads": "8"}},
    ],
    ids=str,
)
def test_an_invalid_configuration_raises(tmp_path: Path, config: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not a configuration"):
        read_huggingface(tmp_path)


@pytest.mark.parametrize("name", ["../../out.txt", "/tmp/out.txt", "a/../../out.txt"])
def test_a_tokenizers_files_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    """Check the names of the tokenizer files that a checkpoint contains."""
    from lakeclip.text.huggingface import HuggingFaceTokenizer

    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError):
        HuggingFaceTokenizer.from_files({name: "x", "tokenizer.json": "{}"}, 16)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "deeper"]
    assert not Path("/tmp/out.txt").exists()
