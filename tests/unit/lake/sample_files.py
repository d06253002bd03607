"""Files for the tests of the lake: encoded images, folders of pairs, tars."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from lakeclip.ingestion.sources.base import Sample


def picture(seed: int = 0, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> bytes:
    """Return an encoded image of noise, different for each seed."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.convert("I").convert("I;16").save(buffer, kind) if mode == "I;16" else image.convert(mode).save(buffer, kind)
    return buffer.getvalue()


def sample(seed: int = 0, captions: tuple[str, ...] = ("a cat",), **metadata: object) -> Sample:
    return Sample(f"key{seed}", picture(seed), captions, metadata)


def write_files(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes | str | Mapping[str, object]]]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in members:
            if isinstance(content, Mapping):
                content = json.dumps(content)
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
