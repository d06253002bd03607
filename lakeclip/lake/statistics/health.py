"""Find rows of a lake that cannot be used for training, by reading and decoding them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.images import check_image
from lakeclip.lake.schema import COLUMNS, UNUSABLE

NO_IMAGE = "no image"
NO_CAPTION = "no caption"
DAMAGED = "damaged: not the bytes that were ingested"

_MAX_THREADS = 8


class RowCheck(NamedTuple):
    """A row and its problem, if it has one.

    Attributes:
        position: the row's index, after the query.
        image: its bytes, even if they cannot be decoded.
        captions: its captions.
        problem: why it cannot be used for training, as "kind" or "kind: detail"; "" if it can.
    """

    position: int
    image: bytes
    captions: tuple[str, ...]
    problem: str


def check_rows(
    lake: Lake, indices: Sequence[int] | NDArray[np.integer[Any]], *, has_captions: bool = True
) -> list[RowCheck]:
    """Read rows and decode their images. A row that cannot be read has a problem; it raises no error.

    Args:
        lake: with a usable image column.
        indices: of the rows, after the query; their images are all in memory at once.
        has_captions: False if the lake has no usable caption column.
    """
    try:
        return _check(lake, indices, has_captions=has_captions)
    except LakeError as error:
        if len(indices) == 1:
            return [RowCheck(int(indices[0]), b"", (), f"cannot be read: {error.found or error.what}")]
        return [check for index in indices for check in check_rows(lake, [int(index)], has_captions=has_captions)]


def has_checksums(lake: Lake) -> bool:
    """Return True if the lake stores checksums of its images, as those that lakeclip writes do."""
    return COLUMNS.items() <= lake.columns.items() and lake.image_column == "image"


def _check(lake: Lake, indices: Sequence[int] | NDArray[np.integer[Any]], *, has_captions: bool) -> list[RowCheck]:
    images, damage = lake.images_and_damage(indices)
    nones = [None] * len(images)
    marks = lake.values(UNUSABLE, indices) if lake.columns.get(UNUSABLE) == "text" else nones
    captions = lake.captions(indices) if has_captions else nones
    problems = [str(mark or "") or ("" if image else NO_IMAGE) for image, mark in zip(images, marks, strict=True)]
    unchecked = [i for i, problem in enumerate(problems) if not problem]
    if unchecked:
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="check") as pool:
            results = pool.map(_image_problem, [images[i] for i in unchecked], [damage[i] for i in unchecked])
            for i, problem in zip(unchecked, results, strict=True):
                problems[i] = problem
    return [
        RowCheck(int(index), image, texts or (), problem or (NO_CAPTION if texts == () else ""))
        for index, image, texts, problem in zip(indices, images, captions, problems, strict=True)
    ]


def _image_problem(image: bytes, damage: str) -> str:
    if damage:
        return DAMAGED
    result = check_image(image)
    return result if isinstance(result, str) else ""
