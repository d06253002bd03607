"""Which rows of a lake cannot be trained on, and why: found by reading and decoding them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.schema import COLUMNS, UNUSABLE
from lakeclip.lake.sources.images import check_image

NO_IMAGE = "no image"
NO_CAPTION = "no caption"
DAMAGED = "damaged: not the bytes that were ingested"

_MAX_THREADS = 8


class Finding(NamedTuple):
    """What a row is found to be.

    Attributes:
        position: the row's index, after the query.
        image: its bytes, whatever they are worth.
        captions: its captions.
        problem: why it cannot be trained on, as "kind" or "kind: detail"; "" if it can.
    """

    position: int
    image: bytes
    captions: tuple[str, ...]
    problem: str


def check_rows(
    lake: Lake, indices: Sequence[int] | NDArray[np.integer[Any]], *, has_captions: bool = True
) -> list[Finding]:
    """Read rows and decode their images. A row that cannot be read is a finding, not an error.

    Args:
        lake: has an image column that can be used.
        indices: of the rows, after the query; their images are all in memory at once.
        has_captions: whether the lake has a column of captions.
    """
    try:
        return _check(lake, indices, has_captions=has_captions)
    except LakeError as error:
        if len(indices) == 1:
            return [Finding(int(indices[0]), b"", (), f"cannot be read: {error.found or error.what}")]
        return [finding for index in indices for finding in check_rows(lake, [int(index)], has_captions=has_captions)]


def has_checksums(lake: Lake) -> bool:
    """Whether the images' checksums are in the lake: it is one of ours."""
    return COLUMNS.items() <= lake.columns.items() and lake.image_column == "image"


def _check(lake: Lake, indices: Sequence[int] | NDArray[np.integer[Any]], *, has_captions: bool) -> list[Finding]:
    images, damage = lake.images_and_damage(indices)
    unknown = [None] * len(images)
    noted = lake.values(UNUSABLE, indices) if lake.columns.get(UNUSABLE) == "text" else unknown
    captions = lake.captions(indices) if has_captions else unknown
    problems = [str(note or "") or ("" if image else NO_IMAGE) for image, note in zip(images, noted, strict=True)]
    unclear = [place for place, problem in enumerate(problems) if not problem]
    if unclear:
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="check") as pool:
            found = pool.map(_problem, [images[place] for place in unclear], [damage[place] for place in unclear])
            for place, problem in zip(unclear, found, strict=True):
                problems[place] = problem
    return [
        Finding(int(index), image, texts or (), problem or (NO_CAPTION if texts == () else ""))
        for index, image, texts, problem in zip(indices, images, captions, problems, strict=True)
    ]


def _problem(image: bytes, damage: str) -> str:
    if damage:
        return DAMAGED
    found = check_image(image)
    return found if isinstance(found, str) else ""
