"""Validation: decode the header of every image in threads, and yield the samples in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from lakeclip.ingestion.sources.base import Sample, Source
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.images import ImageInfo, check_image

#: Samples per task of a thread.
_CHUNK = 32
_CHUNK_BYTES = 4 * 2**20
_MAX_THREADS = 8

#: Reason why a row with only a URL cannot be used.
NOT_DOWNLOADED = "not downloaded"
_NO_IMAGE = ImageInfo("", 0, 0)


class ValidatedItem(NamedTuple):
    """A sample with the properties of its image, or a rejected item.

    Attributes:
        part: part of the source.
        item: the sample, or the rejected item.
        info: properties of the image, all empty or 0 if there is only a URL; None for a rejected item.
    """

    part: str
    item: Sample | Rejected
    info: ImageInfo | None


def validate_samples(sources: Sequence[Source]) -> Iterator[ValidatedItem]:
    """Yield all items of the sources in order. Threads validate a few chunks ahead (image decoders release the GIL)."""
    workers = min(_MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[list[ValidatedItem]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="validate") as pool:
        for chunk in _chunks(sources):
            waiting.append(pool.submit(_validate_chunk, chunk))
            if len(waiting) > workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _chunks(sources: Sequence[Source]) -> Iterator[list[ValidatedItem]]:
    chunk: list[ValidatedItem] = []
    size = 0
    for source in sources:
        for item in source:
            chunk.append(ValidatedItem(source.part, item, None))
            size += len(item.image) if isinstance(item, Sample) else 0
            if len(chunk) == _CHUNK or size > _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    yield chunk


def _validate_chunk(chunk: list[ValidatedItem]) -> list[ValidatedItem]:
    return [_validate(entry) for entry in chunk]


def _validate(entry: ValidatedItem) -> ValidatedItem:
    if isinstance(entry.item, Rejected):
        return entry
    if not entry.item.image and entry.item.url:
        return entry._replace(item=entry.item._replace(unusable=entry.item.unusable or NOT_DOWNLOADED), info=_NO_IMAGE)
    info = check_image(entry.item.image)
    if isinstance(info, ImageInfo):
        return entry._replace(info=info)
    if entry.item.url:  # the download is not an image: keep the row, so that the URL can be tried again
        return entry._replace(item=entry.item._replace(image=b"", unusable=info), info=_NO_IMAGE)
    name = f"{entry.part}: {entry.item.key}" if entry.part else entry.item.key
    return entry._replace(item=Rejected(name, info))
