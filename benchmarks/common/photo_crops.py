"""Very many small photos from a few larger ones: crops, mirrored or not, encoded anew, each with a caption of its own.

They are a source like a folder or a tar, so that lakeclip's own ingest checks and writes them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lakeclip.lake.ingest import IngestReport, fill_lake
from lakeclip.lake.sources.base import Collision, Rejected, Sample
from lakeclip.lake.sources.open import open_sources
from lakeclip.lake.sources.scenes import scenes

#: Sides of the crops in pixels, from and to.
SIDES = (32, 48)
_QUALITIES = (60, 90)
#: Smallest share of a photo's shorter side that a crop keeps.
_LEAST = 0.5
#: Drawn where there are no photos: enough that crops of one are far apart.
_SCENES = 20_000
_ROWS_DOWN, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


class SmallPhotos:
    """Rows cut from the photos of other sources. Every photo is decoded once and gives as many rows as the others.

    Args:
        photos: what `lakeclip ingest` takes, with images of 48 px or more; those below are enlarged. None for scenes
            that the project draws.
        num_rows: how many to give.
    """

    def __init__(self, photos: Path | None, num_rows: int) -> None:
        self.name = "small photos"
        self.part = ""
        self.size = num_rows
        self.position = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self.mapping: dict[str, str] = {}
        self.ended: list[tuple[str, int]] = []
        self._photos = photos
        self._num_photos = min(num_rows, _SCENES) if photos is None else sum(1 for _ in self._read())

    def skip_parts(self, done: Collection[tuple[str, int]]) -> None:
        """There are none: this is read at one go."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for number, sample in enumerate(self._read()):
            begin, end = (self.size * place // self._num_photos for place in (number, number + 1))
            photo = Image.open(io.BytesIO(sample.image)).convert("RGB")
            for row in range(begin, end):
                self.position = row
                yield _cut(photo, sample, row)

    def _read(self) -> Iterator[Sample]:
        if self._photos is None:
            yield from scenes("train", self._num_photos, seed=0)
            return
        for source in open_sources([str(self._photos)]):
            yield from (item for item in source if isinstance(item, Sample) and item.image)


def _cut(photo: Image.Image, sample: Sample, row: int) -> Sample:
    random = np.random.default_rng((0, row))
    side = random.uniform(_LEAST, 1) * min(photo.size)
    left, top = (random.uniform(0, length - side) for length in photo.size)
    size = int(random.integers(SIDES[0], SIDES[1] + 1))
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if mirrored := random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=int(random.integers(_QUALITIES[0], _QUALITIES[1] + 1)))
    # Where in the photo, in thirds, and how near: what a caption can say of a crop.
    place = (
        int(3 * (start + side / 2) / length) for start, length in zip((top, left), reversed(photo.size), strict=True)
    )
    down, across = (names[min(2, third)] for names, third in zip((_ROWS_DOWN, _COLUMNS), place, strict=True))
    said = f", {down} {across}, {side / min(photo.size):.0%} of it" + (", mirrored" if mirrored else "")
    captions = tuple(f"{caption}{said}" for caption in sample.captions)
    return Sample(f"{row:08d}", buffer.getvalue(), captions, {"photo": sample.key})


def make_lake(photos: Path | None, num_rows: int, lake: Path) -> IngestReport:
    """A lake of so many small photos, by lakeclip's own ingest; see `SmallPhotos`."""
    return fill_lake([SmallPhotos(photos, num_rows)], str(lake))
