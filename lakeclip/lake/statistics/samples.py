"""A few rows of a lake, with their images, captions, metadata and problems, to show to the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lakeclip.errors import LakeError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.schema import COLUMNS, UNUSABLE
from lakeclip.lake.statistics.contents import is_plain, show_value
from lakeclip.lake.statistics.health import RowCheck, check_rows


class LakeSample(NamedTuple):
    """One row to show.

    Attributes:
        row: its row in the whole lake.
        key: its name in its source; "" if the lake has none.
        image: its bytes, even if they cannot be decoded.
        captions: best first.
        problem: why it cannot be used for training; "" if it can.
        url: the image's URL, if the row has a URL but no image.
        metadata: the other columns of texts and numbers, as text; without missing values.
    """

    row: int
    key: str
    image: bytes
    captions: tuple[str, ...]
    problem: str
    url: str
    metadata: dict[str, str]


def read_samples(lake: Lake, positions: Sequence[int]) -> list[LakeSample]:
    """Read rows to show, with their problems. Columns that are not plain text or numbers are left out.

    Args:
        positions: indices of the rows, after the query.
    """
    if not len(positions):
        return []
    has_captions = _has(lake, "caption_column")
    if _has(lake, "image_column"):
        checks = check_rows(lake, positions, has_captions=has_captions)
    else:
        captions = lake.captions(positions) if has_captions else [()] * len(positions)
        checks = [RowCheck(position, b"", texts, "") for position, texts in zip(positions, captions, strict=True)]
    # Not metadata: the columns that lakeclip writes, and the captions.
    hidden = {*COLUMNS, UNUSABLE} if COLUMNS.items() <= lake.columns.items() else set()
    if has_captions:
        hidden.add(lake.caption_column)
    names = [name for name, kind in lake.columns.items() if is_plain(kind) and name not in hidden]
    values = {name: [show_value(value) for value in lake.values(name, positions)] for name in names}
    keys = lake.values("key", positions) if lake.columns.get("key") == "text" else [""] * len(positions)
    samples = []
    for i, (row, check, key) in enumerate(zip(lake.base_rows(positions).tolist(), checks, keys, strict=True)):
        metadata = {name: column[i] for name, column in values.items() if column[i]}
        url = "" if check.image else next((metadata[name] for name in metadata if _is_url_name(name)), "")
        samples.append(LakeSample(row, str(key), check.image, check.captions, check.problem, url, metadata))
    return samples


def _has(lake: Lake, role: str) -> bool:
    try:
        return bool(getattr(lake, role))
    except LakeError:
        return False


def _is_url_name(name: str) -> bool:
    return name.lower() == "url" or name.lower().endswith("_url")
