"""Many small photos from a few larger ones: crops, mirrored or not, re-encoded, each with its own caption.

They form a source like a folder or a tar, so that lakeclip's own ingest checks and writes them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lakeclip.ingestion.result import IngestResult
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.open import open_sources
from lakeclip.ingestion.sources.synthetic import scenes
from lakeclip.lake.folder.records import Collision, Rejected

#: Smallest and largest side of a crop in pixels.
SIDES = (32, 48)
_QUALITIES = (60, 90)
#: Smallest share of a photo's shorter side that a crop keeps.
_MIN_CROP = 0.5
#: Number of scenes to draw without photos: enough that the crops of one scene differ clearly.
_NUM_SCENES = 20_000
_VERTICAL, _HORIZONTAL = ("top", "middle", "bottom"), ("left", "centre", "right")


class PhotoCrops:
    """A source whose rows are crops of other sources' photos. Each photo is decoded once and gives equally many rows.

    Args:
        photos: what `lakeclip ingest` accepts, with images of 48 px or more; smaller ones are enlarged. None for
            synthetic scenes.
        num_rows: number of rows to produce.
    """

    def __init__(self, photos: Path | None, num_rows: int) -> None:
        self.name = "photo crops"
        self.part = ""
        self.size = num_rows
        self.position = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self.mapping: dict[str, str] = {}
        self.completed: list[tuple[str, int]] = []
        self._photos = photos
        self._num_photos = min(num_rows, _NUM_SCENES) if photos is None else sum(1 for _ in self._read())

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        """Do nothing: this source has no parts."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for number, sample in enumerate(self._read()):
            begin, end = (self.size * index // self._num_photos for index in (number, number + 1))
            photo = Image.open(io.BytesIO(sample.image)).convert("RGB")
            for row in range(begin, end):
                self.position = row
                yield _crop(photo, sample, row)

    def _read(self) -> Iterator[Sample]:
        if self._photos is None:
            yield from scenes("train", self._num_photos, seed=0)
            return
        for source in open_sources([str(self._photos)]):
            yield from (item for item in source if isinstance(item, Sample) and item.image)


def _crop(photo: Image.Image, sample: Sample, row: int) -> Sample:
    random = np.random.default_rng((0, row))
    side = random.uniform(_MIN_CROP, 1) * min(photo.size)
    left, top = (random.uniform(0, length - side) for length in photo.size)
    size = int(random.integers(SIDES[0], SIDES[1] + 1))
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    if mirrored := random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=int(random.integers(_QUALITIES[0], _QUALITIES[1] + 1)))
    # The caption tells where in the photo the crop is, in thirds, and how large it is.
    thirds = (
        int(3 * (start + side / 2) / length) for start, length in zip((top, left), reversed(photo.size), strict=True)
    )
    vertical, horizontal = (names[min(2, third)] for names, third in zip((_VERTICAL, _HORIZONTAL), thirds, strict=True))
    suffix = f", {vertical} {horizontal}, {side / min(photo.size):.0%} of it" + (", mirrored" if mirrored else "")
    captions = tuple(f"{caption}{suffix}" for caption in sample.captions)
    return Sample(f"{row:08d}", buffer.getvalue(), captions, {"photo": sample.key})


def make_lake(photos: Path | None, num_rows: int, lake: Path) -> IngestResult:
    """Write a lake of photo crops with lakeclip's own ingest; see `PhotoCrops`."""
    return fill_lake([PhotoCrops(photos, num_rows)], str(lake))
