"""What is fuzzed: for each kind of input, a function of bytes that raises only if there is something to mend.

Mutated bytes rarely get past a checksum, so most targets spend their first byte on what is done with the rest: left as
it is, compressed, put into an archive of the right form, or given checksums that hold (`mend.py`).
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
from lakeclip.lake.download.shrink import check_and_shrink
from lakeclip.lake.schema import dump_captions, load_captions
from lakeclip.lake.sources.base import Rejected, Sample
from lakeclip.lake.sources.captions import decode_text, parse_captions
from lakeclip.lake.sources.images import check_image
from lakeclip.lake.sources.tables import Tables
from lakeclip.lake.sources.webdataset import Shards
from lakeclip.models.zoo import model_config
from lakeclip.text.tokenizer import VOCAB_SIZE, Tokenizer
from tests.fuzz import archives, mend

# What is logged of bad input is for people; here it would only cost time.
logging.disable(logging.ERROR)

_folder = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_FOLDER = Path(_folder.name)
_TOKENIZE = Tokenizer()


class Target(NamedTuple):
    """One kind of input.

    Attributes:
        run: takes an input; raises, hangs or takes too much memory if something is wrong with us.
        packages: whose Python code's branches lead the search, beside lakeclip's own.
        longest: bytes of an input.
    """

    run: Callable[[bytes], None]
    packages: tuple[str, ...]
    longest: int


def images(data: bytes) -> None:
    """Bytes to pixels, as ingest checks them, as a download is made smaller, and as training decodes them."""
    if data[:1] == b"+":
        data = mend.png(data[1:])
    found = check_image(data)
    shrunk = check_and_shrink(data, 16, "shorter")
    assert isinstance(shrunk, (bytes, str))
    assert isinstance(shrunk, str) or not isinstance(found, str), f"shrunk, though {found}"
    with contextlib.suppress(ImageError):
        image = EncodedImage(data)
        small = image.pixels(8)
        assert small.dtype == np.uint8
        assert small.shape == (-(-image.height // 8), -(-image.width // 8), 3), (small.shape, image.height, image.width)
    with contextlib.suppress(ImageError):
        assert decode_image(data).ndim == 3


def tars(data: bytes) -> None:
    """Archives to samples."""
    how = data[0] if data else 0
    body = mend.tar(data[1:]) if how & 4 else data[1:]
    path = _written("x.tar", archives.compressed(body, how & 3))
    held = 0
    for item in Shards("x", [str(path)]):
        assert isinstance(item, (Sample, Rejected))
        if isinstance(item, Sample):
            held = max(held, len(item.image))
            assert all(caption.strip() == caption != "" for caption in item.captions)
            json.dumps(item.metadata)
    assert held <= 64 * 2**20, f"an input of {len(data)} bytes became a picture of {held:,}"


def captions(data: bytes) -> None:
    """Caption files, the `captions` column and the tokenizer."""
    texts = parse_captions(data)
    assert all(text.strip() == text != "" for text in texts)
    stored = decode_text(data)
    loaded = load_captions(stored)
    assert all(isinstance(text, str) for text in loaded)
    # What is stored comes back, once it is text that UTF-8 can hold.
    assert load_captions(dump_captions(loaded)) == load_captions(dump_captions(load_captions(dump_captions(loaded))))
    ids = _TOKENIZE([*texts[:8], *loaded[:8]])
    assert ids.shape[1] == 77
    assert ids.numel() == 0 or 0 <= int(ids.min()) <= int(ids.max()) < VOCAB_SIZE
    for text in texts[:2]:
        _TOKENIZE.decode(_TOKENIZE.encode(text))


_TABLES = ("x.csv", "x.tsv", "x.jsonl", "x.csv.gz", "x.jsonl.gz")


def tables(data: bytes) -> None:
    """Tables of text to samples."""
    name = _TABLES[data[0] % len(_TABLES)] if data else _TABLES[0]
    body = data[1:]
    # A second choice: the compressed bytes themselves are the input.
    if name.endswith(".gz") and not (data[0] // len(_TABLES)) & 1:
        body = archives.compressed(body, 1)
    path = _written(name, body)
    try:
        for item in Tables("x", [str(path)]):
            assert isinstance(item, (Sample, Rejected))
    except SourceError:
        return


def recipes(data: bytes) -> None:
    """YAML to settings: of a run, of fine-tuning, of a model."""
    path = _written("x.yaml", data)
    for kind in (TrainConfig, FinetuneConfig):
        with contextlib.suppress(ConfigError):
            read_recipe(path, kind)
    with contextlib.suppress(ModelError, ConfigError):
        model_config("x", path)


def checkpoints(data: bytes) -> None:
    """Files of weights, our own and other makers', to models."""
    how = data[0] if data else 0
    body, kind = data[1:], how % 5
    if kind == 4:
        archives.write_huggingface(_FOLDER / "hf", body)
        _loaded(f"huggingface:{_FOLDER / 'hf'}")
        return
    name = "x.safetensors" if kind == 3 else "x.ckpt"
    if kind == 1:
        body = archives.torch_archive(body, compressed=bool(how & 0x80))
    elif kind == 2:
        body = archives.torchscript(body, compressed=bool(how & 0x80))
    path = _written(name, body)
    with contextlib.suppress(LakeclipError):
        read_checkpoint(path)
    for maker in ("", "openai:", "open_clip:"):
        _loaded(f"{maker}{path}")


def _loaded(name: str) -> None:
    with contextlib.suppress(LakeclipError):
        load(name)


def _written(name: str, data: bytes) -> Path:
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
