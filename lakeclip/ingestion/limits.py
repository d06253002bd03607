"""Limits on rows: what a lake cannot hold is rejected by name before it is written."""

from __future__ import annotations

from collections import Counter

from lakeclip.ingestion.sources.base import Sample
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.values import MAX_TEXT_BYTES, clean_text, plain_value

MAX_IMAGE_BYTES = 512 * 2**20
#: Limit on the size of the name of a sample or of a part in UTF-8: the longest path that Linux allows.
MAX_NAME_BYTES = 4_096
_MAX_SIDE = 2**31 - 1


def unstorable_reason(sample: Sample, info: ImageInfo, part: str) -> str:
    """Return why a sample cannot become a row of a lake, or "" if it can."""
    if len(sample.image) > MAX_IMAGE_BYTES:
        return f"image of more than {MAX_IMAGE_BYTES // 2**20} MiB"
    if not (0 <= info.width <= _MAX_SIDE and 0 <= info.height <= _MAX_SIDE):
        return f"image of more than {_MAX_SIDE:,} pixels on a side"
    for name in (sample.key, part):
        if len(name) > MAX_NAME_BYTES // 4 and len(clean_text(name).encode()) > MAX_NAME_BYTES:
            return f"name of more than {MAX_NAME_BYTES:,} bytes"
    if "\0" in part:  # a query for the rows of this part could not contain it
        return "name of a part with a zero byte"
    if sample.captions and not storable_captions(sample, Counter()):
        return f"caption of more than {MAX_TEXT_BYTES // 2**20} MiB"
    return ""


def storable_captions(sample: Sample, problems: Counter[str]) -> tuple[str, ...]:
    """Return the captions of a sample as text. Those beyond `MAX_TEXT_BYTES` in all are left out and counted.

    Args:
        sample: the sample.
        problems: counts what is changed, by reason.
    """
    given: object = sample.captions
    values = (given,) if isinstance(given, str) else sample.captions
    captions: list[str] = []
    size = 0
    for value in values:
        changes: Counter[str] = Counter()
        caption = plain_value(value, changes)
        for reason, count in changes.items():
            problems[f"caption: {reason.replace('stored as missing', 'left out')}"] += count
        if caption is None:
            continue
        text = str(caption)
        size += len(text.encode())
        if size > MAX_TEXT_BYTES:
            problems[f"caption: more than {MAX_TEXT_BYTES // 2**20} MiB of captions in all, left out"] += 1
            break
        captions.append(text)
    return tuple(captions)
