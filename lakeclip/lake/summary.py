"""What is in a lake, in figures: all rows of a small one, an even sample of a large one."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lakeclip.errors import LakeError
from lakeclip.lake.dataset import Lake

#: Captions and sizes are taken from at most this many rows, in blocks, so that a huge lake is read in a few places.
MAX_ROWS = 100_000
_BLOCK = 250
#: Where a lake does not say how large its images are, this many headers are read.
_MAX_HEADERS = 256


@dataclass(frozen=True)
class Spread:
    """Smallest, median, mean and largest of some numbers."""

    min: int
    median: float
    mean: float
    max: int


@dataclass
class Summary:
    """The figures.

    Attributes:
        path: the lake.
        version: its version.
        query: the clause that chose the rows.
        num_rows: rows, after the query.
        total_rows: rows in the lake.
        columns: name → type.
        image_column: the column with images, or None if there is none that can be used.
        caption_column: the column with captions, likewise.
        rows_looked_at: how many rows the figures below come from.
        with_captions: rows among them that have a caption.
        captions_per_row: of those that have one.
        caption_words: words in the first caption.
        caption_characters: characters in the first caption.
        formats: how many images are of each format.
        width: pixels across, as encoded.
        height: pixels down, as encoded.
        sizes_looked_at: how many rows the sizes and formats come from.
        examples: a few rows' first captions.
    """

    path: str
    version: str
    query: str | None
    num_rows: int
    total_rows: int
    columns: dict[str, str]
    image_column: str | None = None
    caption_column: str | None = None
    rows_looked_at: int = 0
    with_captions: int | None = None
    captions_per_row: Spread | None = None
    caption_words: Spread | None = None
    caption_characters: Spread | None = None
    formats: dict[str, int] = field(default_factory=dict)
    width: Spread | None = None
    height: Spread | None = None
    sizes_looked_at: int = 0
    examples: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """As plain values, for JSON."""
        return asdict(self)


def summarize(lake: Lake) -> Summary:
    """Look at a lake. Never decodes an image; a lake without usable columns has its columns listed and no more."""
    summary = Summary(lake.path, lake.version, lake.query, len(lake), lake.total_rows, lake.columns)
    rows = _even_sample(len(lake), MAX_ROWS)
    summary.rows_looked_at = len(rows)
    try:
        summary.caption_column = lake.caption_column
        _look_at_captions(lake, rows, summary)
    except LakeError:
        pass
    try:
        summary.image_column = lake.image_column
        _look_at_images(lake, rows, summary)
    except LakeError:
        pass
    return summary


def _even_sample(total: int, most: int) -> NDArray[np.int64]:
    """Up to `most` of `total` rows, in blocks that lie evenly."""
    if total <= most:
        return np.arange(total)
    starts = np.linspace(0, total - _BLOCK, most // _BLOCK).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_BLOCK))


def _look_at_captions(lake: Lake, rows: NDArray[np.int64], summary: Summary) -> None:
    captions = lake.captions(rows)
    first = [texts[0] for texts in captions if texts]
    summary.with_captions = len(first)
    if not first:
        return
    summary.captions_per_row = _spread([len(texts) for texts in captions if texts])
    summary.caption_words = _spread([len(text.split()) for text in first])
    summary.caption_characters = _spread([len(text) for text in first])
    summary.examples = [first[place] for place in np.linspace(0, len(first) - 1, min(5, len(first))).astype(int)]


def _look_at_images(lake: Lake, rows: NDArray[np.int64], summary: Summary) -> None:
    if not len(rows):
        return
    if {"format": "text", "width": "int32", "height": "int32"}.items() <= lake.columns.items():
        columns = [lake.values(name, rows) for name in ("format", "width", "height")]
        found = list(zip(*columns, strict=True))
    else:
        found = [_header(data) for data in lake.images(rows[:: -(-len(rows) // _MAX_HEADERS)])]
    summary.sizes_looked_at = len(found)
    summary.formats = dict(Counter(str(kind) for kind, _, _ in found).most_common())
    for name, place in (("width", 1), ("height", 2)):
        pixels = [int(entry[place]) for entry in found if entry[place]]
        if pixels:
            setattr(summary, name, _spread(pixels))


def _header(data: bytes) -> tuple[str, int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return (image.format or "?").lower(), *image.size
        except Exception:  # Pillow raises whatever bad bytes make it raise
            return "not an image", 0, 0


def _spread(numbers: list[int]) -> Spread:
    values = np.asarray(numbers)
    return Spread(int(values.min()), float(np.median(values)), round(float(values.mean()), 2), int(values.max()))
