"""Fuzzing targets: for each kind of input, a function of bytes that raises only if lakeclip has a bug.

Mutated bytes rarely pass a checksum. Most targets therefore use the first byte to select what happens to the others:
they are left unchanged, compressed, wrapped in a valid archive (`archives.py`), or get valid checksums (`repair.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lakeclip.checkpoints.layouts import load
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.config.load import read_recipe
from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.data.decode import EncodedImage, decode_image
from lakeclip.errors import ConfigError, ImageError, LakeclipError, ModelError, SourceError
from lakeclip.ingestion.download.shrink import check_and_shrink
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.ingestion.sources.webdataset import Shards
from lakeclip.lake.folder.captions import decode_text, parse_captions
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.images import check_image
from lakeclip.lake.schema import dump_captions, load_captions
from lakeclip.models.zoo import model_config
from lakeclip.text.tokenizer import VOCAB_SIZE, Tokenizer
from tests.fuzz import archives, repair

# Log messages about bad input would only slow down fuzzing.
logging.disable(logging.ERROR)

_folder = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_FOLDER = Path(_folder.name)
_TOKENIZE = Tokenizer()


class Target(NamedTuple):
    """A kind of input.

    Attributes:
        run: function of an input; it raises, hangs or exhausts memory only if lakeclip has a bug.
        packages: packages whose branches guide the search, in addition to lakeclip.
        longest: limit on the bytes of an input.
    """

    run: Callable[[bytes], None]
    packages: tuple[str, ...]
    longest: int


def images(data: bytes) -> None:
    """Validate images as ingest does, shrink them as downloads do, and decode them as training does."""
    if data[:1] == b"+":
        data = repair.png(data[1:])
    info = check_image(data)
    shrunk = check_and_shrink(data, 16, "shorter")
    assert isinstance(shrunk, (bytes, str))
    assert isinstance(shrunk, str) or not isinstance(info, str), f"shrunk, though {info}"
    with contextlib.suppress(ImageError):
        image = EncodedImage(data)
        small = image.pixels(8)
        assert small.dtype == np.uint8
        assert small.shape == (-(-image.height // 8), -(-image.width // 8), 3), (small.shape, image.height, image.width)
    with contextlib.suppress(ImageError):
        assert decode_image(data).ndim == 3


def tars(data: bytes) -> None:
    """Read samples from tar files."""
    method = data[0] if data else 0
    body = repair.tar(data[1:]) if method & 4 else data[1:]
    path = _write("x.tar", archives.compressed(body, method & 3))
    largest = 0
    for item in Shards([str(path)]):
        assert isinstance(item, (Sample, Rejected))
        if isinstance(item, Sample):
            largest = max(largest, len(item.image))
            assert all(caption.strip() == caption != "" for caption in item.captions)
            json.dumps(item.metadata)
    assert largest <= 64 * 2**20, f"an input of {len(data)} bytes became an image of {largest:,}"


def captions(data: bytes) -> None:
    """Parse caption files and the `captions` column, and tokenize the texts."""
    texts = parse_captions(data)
    assert all(text.strip() == text != "" for text in texts)
    stored = decode_text(data)
    loaded = load_captions(stored)
    assert all(isinstance(text, str) for text in loaded)
    # Captions survive a round trip once they are valid UTF-8.
    assert load_captions(dump_captions(loaded)) == load_captions(dump_captions(load_captions(dump_captions(loaded))))
    ids = _TOKENIZE([*texts[:8], *loaded[:8]])
    assert ids.shape[1] == 77
    assert ids.numel() == 0 or 0 <= int(ids.min()) <= int(ids.max()) < VOCAB_SIZE
    for text in texts[:2]:
        _TOKENIZE.decode(_TOKENIZE.encode(text))


_TABLES = ("x.csv", "x.tsv", "x.jsonl", "x.csv.gz", "x.jsonl.gz")


def tables(data: bytes) -> None:
    """Read samples from text tables."""
    name = _TABLES[data[0] % len(_TABLES)] if data else _TABLES[0]
    body = data[1:]
    # In half of the cases the input is the compressed file itself.
    if name.endswith(".gz") and not (data[0] // len(_TABLES)) & 1:
        body = archives.compressed(body, 1)
    path = _write(name, body)
    try:
        for item in Tables([str(path)]):
            assert isinstance(item, (Sample, Rejected))
    except SourceError:
        return


def recipes(data: bytes) -> None:
    """Load YAML as training, fine-tuning and model configurations."""
    path = _write("x.yaml", data)
    for kind in (TrainConfig, FinetuneConfig):
        with contextlib.suppress(ConfigError):
            read_recipe(path, kind)
    with contextlib.suppress(ModelError, ConfigError):
        model_config("x", path)


def checkpoints(data: bytes) -> None:
    """Load native, OpenAI, open_clip and Hugging Face checkpoints."""
    method = data[0] if data else 0
    body, kind = data[1:], method % 5
    if kind == 4:
        archives.write_huggingface(_FOLDER / "hf", body)
        _try_load(f"huggingface:{_FOLDER / 'hf'}")
        return
    name = "x.safetensors" if kind == 3 else "x.ckpt"
    if kind == 1:
        body = archives.torch_archive(body, compressed=bool(method & 0x80))
    elif kind == 2:
        body = archives.torchscript(body, compressed=bool(method & 0x80))
    path = _write(name, body)
    with contextlib.suppress(LakeclipError):
        read_checkpoint(path)
    for prefix in ("", "openai:", "open_clip:"):
        _try_load(f"{prefix}{path}")


def _try_load(name: str) -> None:
    with contextlib.suppress(LakeclipError):
        load(name)


def _write(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


TARGETS = {
    "images": Target(images, ("PIL",), 2**14),
    "tars": Target(tars, ("tarfile",), 2**14),
    "captions": Target(captions, ("ftfy",), 2**12),
    "tables": Target(tables, (), 2**13),
    "recipes": Target(recipes, ("yaml",), 2**12),
    "checkpoints": Target(checkpoints, ("pickle", "zipfile"), 2**14),
}
