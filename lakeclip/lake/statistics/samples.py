"""A few rows of a lake with all that is worth showing of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lakeclip.errors import LakeError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.schema import COLUMNS, UNUSABLE
from lakeclip.lake.survey.contents import is_plain, show_value
from lakeclip.lake.survey.health import Finding, check_rows


class LakeSample(NamedTuple):
    """One row.

    Attributes:
        row: its row in the whole lake.
        key: its name in its source; "" where the lake has none.
        image: the bytes, whatever they are worth.
        captions: best first.
        problem: why it cannot be trained on; "" if it can.
        address: where its image can be had, if the row has none and says where.
        metadata: the other columns of texts and numbers, as text; what is missing is left out.
    """

    row: int
    key: str
    image: bytes
    captions: tuple[str, ...]
    problem: str
    address: str
    metadata: dict[str, str]


def read_samples(lake: Lake, positions: Sequence[int]) -> list[LakeSample]:
    """Rows to show. Damaged ones come with their problem; columns that cannot be shown in a line are left out.

    Args:
        positions: of the rows, after the query.
    """
    if not len(positions):
        return []
    has_captions = _has(lake, "caption_column")
    if _has(lake, "image_column"):
        findings = check_rows(lake, positions, has_captions=has_captions)
    else:
        captions = lake.captions(positions) if has_captions else [()] * len(positions)
        findings = [Finding(position, b"", texts, "") for position, texts in zip(positions, captions, strict=True)]
    # What is shown otherwise: in a lake of ours its own columns, in any the captions.
    hidden = {*COLUMNS, UNUSABLE} if COLUMNS.items() <= lake.columns.items() else set()
    if has_captions:
        hidden.add(lake.caption_column)
    names = [name for name, kind in lake.columns.items() if is_plain(kind) and name not in hidden]
    values = {name: [show_value(value) for value in lake.values(name, positions)] for name in names}
    keys = lake.values("key", positions) if lake.columns.get("key") == "text" else [""] * len(positions)
    samples = []
    for place, (row, finding, key) in enumerate(zip(lake.base_rows(positions).tolist(), findings, keys, strict=True)):
        metadata = {name: column[place] for name, column in values.items() if column[place]}
        address = "" if finding.image else next((metadata[name] for name in metadata if _is_address(name)), "")
        samples.append(LakeSample(row, str(key), finding.image, finding.captions, finding.problem, address, metadata))
    return samples


def _has(lake: Lake, role: str) -> bool:
    try:
        return bool(getattr(lake, role))
    except LakeError:
        return False


def _is_address(name: str) -> bool:
    return name.lower() == "url" or name.lower().endswith("_url")
