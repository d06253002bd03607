"""Files of weights that were made to do harm."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from lakeclip.checkpoints.file import read_torch_file, read_weights_file
from lakeclip.errors import CheckpointError, ModelError
from lakeclip.models.pretrained import remake_image_encoder


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def test_a_towers_library_cannot_be_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_library.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="no library"):
        remake_image_encoder({"library": "evil_library", "name": "x", "config": {}})
    assert "evil_library" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", {"data.pkl": bytes(80 * 2**20), "constants.pkl": b""})
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="unpacks to far more"):
        read_weights_file(path, allowed="weights")


def test_a_torchscript_archive_is_none_of_ours(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.ckpt", {"data.pkl": b"\x80\x02).", "constants.pkl": b"\x80\x02)."})
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        read_torch_file(path, allowed="a .ckpt file")


def test_a_number_in_the_memo_takes_no_memory(tmp_path: Path) -> None:
    tree = b"\x80\x02K\x01r\xff\xff\xff\x7f0)."
    path = write_zip(tmp_path / "x.pt", {"data.pkl": tree, "constants.pkl": b""})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights_file(path, allowed="weights")
