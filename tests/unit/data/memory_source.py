"""Generated images and an in-memory `RowSource` for the tests of `lakeclip.data`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from lakeclip.lake.rows import Row, RowSource


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a synthetic photograph: smooth shapes and edges at several scales, with a little noise. uint8 RGB."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (2, 5, 12, 30):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / cells**0.5
    total += random.normal(0, 2, total.shape)
    return np.clip(total / total.max() * 255, 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str = "jpeg", **options: object) -> bytes:
    """Return the content of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class MemorySource(RowSource):
    """A `RowSource` in memory.

    Row n has an image of one colour that encodes n, and the captions "n first", "n second" and so on.

    Args:
        num_rows: number of rows.
        broken: rows whose image does not decode.
        captions: number of captions of each row.
        silent: rows without a caption.
    """

    path = "memory"
    version = "1"

    def __init__(
        self, num_rows: int, *, broken: Sequence[int] = (), captions: int = 1, silent: Sequence[int] = ()
    ) -> None:
        self.num_rows = num_rows
        self.broken = set(broken)
        self.captions = captions
        self.silent = set(silent)
        self.columns = {"image": "bytes", "captions": "text"}

    def __len__(self) -> int:
        return self.num_rows

    def read(self, indices: Sequence[int], *, with_captions: bool = True) -> list[Row]:
        return [self._row(int(index)) for index in indices]

    def column(self, name: str) -> list[object]:
        return [self[index][name] for index in range(self.num_rows)]

    def __getitem__(self, index: int) -> dict[str, object]:
        row = self._row(index)
        return {"image": row.image, "captions": row.captions}

    def _row(self, index: int) -> Row:
        assert 0 <= index < self.num_rows
        image = b"\xff\xd8\xff not a photo" if index in self.broken else _image_of(index)
        ordinals = ("first", "second", "third", "fourth", "fifth")[: self.captions]
        return Row(index, image, () if index in self.silent else tuple(f"{index} {ordinal}" for ordinal in ordinals))


@lru_cache(maxsize=10_000)
def _image_of(row: int) -> bytes:
    colour = np.full((8, 8, 3), (row % 256, row // 256 % 256, 0), dtype=np.uint8)
    return encode(colour, "png", compress_level=0)


def row_of(image: object) -> int:
    """Return the row that a decoded image of a `MemorySource` encodes."""
    red, green = int(image[0].float().mean()), int(image[1].float().mean())  # type: ignore[index]
    return red + 256 * green
