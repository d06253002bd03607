"""What the tests of the data room read from: pictures made here, and a source in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lakeclip.lake.rows import Row


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Something like a photograph: smooth shapes and edges at several sizes, with a little noise. uint8 RGB."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (2, 5, 12, 30):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / cells**0.5
    total += random.normal(0, 2, total.shape)
    return np.clip(total / total.max() * 255, 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str = "jpeg", **options: object) -> bytes:
    """The content of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class MemorySource:
    """A `RowSource` in memory. Row n's image is of one colour that says n; its captions are "n first", "n second", …

    Args:
        num_rows: how many.
        broken: rows whose image does not decode.
        captions: how many each row has.
        silent: rows without a caption.
    """

    path = "memory"
    version = "1"
    query = None

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

    def read(self, indices: Sequence[int]) -> list[Row]:
        return [self._row(int(index)) for index in indices]

    def column(self, name: str) -> list[object]:
        return [self[index][name] for index in range(self.num_rows)]

    def __getitem__(self, index: int) -> dict[str, object]:
        row = self._row(index)
        return {"image": row.image, "captions": row.captions}

    def _row(self, index: int) -> Row:
        assert 0 <= index < self.num_rows
        colour = np.full((8, 8, 3), (index % 256, index // 256 % 256, 0), dtype=np.uint8)
        image = b"\xff\xd8\xff not a photo" if index in self.broken else encode(colour, "png", compress_level=0)
        words = ("first", "second", "third", "fourth", "fifth")[: self.captions]
        return Row(index, image, () if index in self.silent else tuple(f"{index} {word}" for word in words))


def row_of(image: object) -> int:
    """The row that a decoded image of a `MemorySource` says it is."""
    red, green = int(image[0].float().mean()), int(image[1].float().mean())  # type: ignore[index]
    return red + 256 * green
