"""Photos for encoding.py: read from shards or synthetic, as they are or enlarged, in a folder and in a lake."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lakeclip.ingestion.run import ingest

#: Name → width (None: the photos as they are), height, and maximum number of photos.
SIZES: dict[str, tuple[int | None, int, int]] = {
    "as given": (None, 0, 2048),
    "640×480": (640, 480, 512),
    "1024×768": (1024, 768, 256),
    "2000×1500": (2000, 1500, 128),
}
#: Number of synthetic photos when none are given.
_NUM_SYNTHETIC = 1024
_WORDS = ("a red dog", "the old barn", "small boats", "on a blue lake", "under the hill", "near a road", "in the rain")

#: A photo and its captions.
Pair = tuple[bytes, list[str]]


def read_pairs(data: Path | None) -> list[Pair]:
    """Read the pairs of the shards in a folder; None for soft noise with sentences of about a dozen words."""
    if data is None:
        draws = np.random.default_rng(0)
        return [(_noise(draws), [" ".join(draws.choice(_WORDS, 5))]) for _ in range(_NUM_SYNTHETIC)]
    pairs = []
    for path in sorted(data.glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, photo in content.items():
            text = content.get(f"{Path(name).stem}.txt")
            if name.endswith(".jpg") and text is not None:
                pairs.append((photo, text.decode().splitlines()))
    return pairs


def write_photos(pairs: list[Pair], folder: Path, width: int | None, height: int, count: int) -> dict[str, Any]:
    """Write the same photos to `folder / photos`, for open_clip's loader, and to the lake `folder / lake`.

    Files of an earlier run are kept.
    """
    if not (folder / "lake").exists():
        _write(pairs, folder, width, height, count)
    sizes = [path.stat().st_size for path in (folder / "photos" / "one").iterdir()]
    return {"photos": len(sizes), "bytes_each": round(sum(sizes) / len(sizes))}


def _write(pairs: list[Pair], folder: Path, width: int | None, height: int, count: int) -> None:
    (folder / "photos" / "one").mkdir(parents=True)
    shard = folder / "0.tar"
    with tarfile.open(shard, "w") as tar:
        for number, (photo, captions) in enumerate(pairs[:count]):
            jpeg = photo if width is None else _mosaic(pairs, number, width, height)
            (folder / "photos" / "one" / f"{number:06}.jpg").write_bytes(jpeg)
            for suffix, content in (("jpg", jpeg), ("txt", captions[0].encode())):
                info = tarfile.TarInfo(f"{number:06}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    ingest([str(shard)], str(folder / "lake"))


def _mosaic(pairs: list[Pair], number: int, width: int, height: int) -> bytes:
    """Tile photos, each enlarged to twice its size, so that a pixel takes about as many bytes as on the web."""
    tile = 448
    mosaic = Image.new("RGB", (width, height))
    for cell, (top, left) in enumerate((y, x) for y in range(0, height, tile) for x in range(0, width, tile)):
        photo = Image.open(io.BytesIO(pairs[(number * 7 + cell * 13) % len(pairs)][0])).convert("RGB")
        mosaic.paste(photo.resize((tile, tile), Image.Resampling.BICUBIC), (left, top))
    buffer = io.BytesIO()
    mosaic.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _noise(draws: np.random.Generator) -> bytes:
    coarse = Image.fromarray(draws.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
