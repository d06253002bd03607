"""Valid archives around arbitrary bytes, which a fuzzer would take too long to discover by itself."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import torch

from lakeclip.checkpoints.huggingface import write_huggingface as _write_huggingface
from lakeclip.config.schema import DataConfig, ModelConfig, TrainConfig
from lakeclip.models.clip import CLIP
from lakeclip.provenance.lineage import make_lineage
from lakeclip.text.tokenizer import Tokenizer

#: Smallest CLIP that all checkpoint layouts support.
SMALL = ModelConfig(
    embed_dim=8,
    image_resolution=8,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=4,
    context_length=8,
    vocab_size=16,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


def compressed(data: bytes, method: int) -> bytes:
    """Return the bytes unchanged (0), or compressed with gzip (1), bzip2 (2) or xz (3)."""
    if method == 1:
        return gzip.compress(data, 1, mtime=0)
    if method == 2:
        return bz2.compress(data, 1)
    return lzma.compress(data, preset=0) if method == 3 else data


@functools.cache
def small_model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(SMALL)


@functools.cache
def small_checkpoint() -> bytes:
    """Return a complete checkpoint in the native format."""
    entry = make_lineage(
        model_name="small",
        model_config=SMALL,
        tokenizer=Tokenizer(SMALL.context_length),
        data={"path": "lake", "version": "abc@3", "query": "width > 50", "rows": 10},
        config=TrainConfig(model="small", data=DataConfig(lake="lake")),
        progress={"step": 1, "epoch": 0, "samples_seen": 8},
    )
    weights = {f"model.{key}": value for key, value in small_model().state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "lakeclip": entry, "epoch": 0}, buffer)
    return buffer.getvalue()


@functools.cache
def _members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(small_checkpoint())) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def small_pickle() -> bytes:
    """Return the data.pkl of the small checkpoint."""
    return _members()["data.pkl"]


def plain_pickle() -> bytes:
    """Return the data.pkl of the weights only, with OpenAI's names; the storages have the same numbers."""
    buffer = io.BytesIO()
    torch.save(dict(small_model().state_dict()), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def torch_archive(pickled: bytes, *, compressed: bool = False) -> bytes:
    """Return a `torch.save` archive with this data.pkl and the storages of the small checkpoint."""
    return _zipped({**_members(), "data.pkl": pickled}, compressed=compressed)


def torchscript(pickled: bytes, *, compressed: bool = False) -> bytes:
    """Return a TorchScript archive with this data.pkl and the same storages."""
    members = {**_members(), "data.pkl": pickled, "constants.pkl": b"\x80\x02).", "code/__torch__.py": b""}
    return _zipped(members, compressed=compressed)


def write_huggingface(folder: Path, config: bytes) -> None:
    """Write a Hugging Face folder with this config.json and the weights of the small model."""
    if not folder.is_dir():
        _write_huggingface(small_model(), folder)
    (folder / "config.json").write_bytes(config)


def _zipped(members: dict[str, bytes], *, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data, compress_type=archive.compression)
    return buffer.getvalue()
