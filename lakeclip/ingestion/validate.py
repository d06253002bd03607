"""Samples on their way from the sources to the writer: every image is checked, in threads, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from lakeclip.lake.sources.base import Rejected, Sample, Source
from lakeclip.lake.sources.images import ImageInfo, check_image

#: One task for a thread.
_CHUNK = 32
_CHUNK_BYTES = 4 * 2**20
_MAX_THREADS = 8

#: Why a row that has only an address cannot be used.
NOT_DOWNLOADED = "not downloaded"
_NO_IMAGE = ImageInfo("", 0, 0)


class Checked(NamedTuple):
    """A sample with what is known of its image, or what was rejected.

    Attributes:
        part: the part of the source it is from.
        item: the sample, or why it is none.
        info: what its image is, nothing but zeros where there is only its address; None for what was rejected.
    """

    part: str
    item: Sample | Rejected
    info: ImageInfo | None


def check_all(sources: Sequence[Source]) -> Iterator[Checked]:
    """Everything in the sources, in order, with a few chunks of it being decoded ahead (decoders release the GIL)."""
    workers = min(_MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[list[Checked]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        for chunk in _chunks(sources):
            waiting.append(pool.submit(_check_chunk, chunk))
            if len(waiting) > workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _chunks(sources: Sequence[Source]) -> Iterator[list[Checked]]:
    chunk: list[Checked] = []
    size = 0
    for source in sources:
        for item in source:
            chunk.append(Checked(source.part, item, None))
            size += len(item.image) if isinstance(item, Sample) else 0
            if len(chunk) == _CHUNK or size > _CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
    yield chunk


def _check_chunk(chunk: list[Checked]) -> list[Checked]:
    return [_check_one(entry) for entry in chunk]


def _check_one(entry: Checked) -> Checked:
    if isinstance(entry.item, Rejected):
        return entry
    if not entry.item.image and entry.item.url:
        return entry._replace(item=entry.item._replace(unusable=entry.item.unusable or NOT_DOWNLOADED), info=_NO_IMAGE)
    info = check_image(entry.item.image)
    if isinstance(info, ImageInfo):
        return entry._replace(info=info)
    if entry.item.url:  # what the address gave is no picture: the row stays, so that it can be tried again
        return entry._replace(item=entry.item._replace(image=b"", unusable=info), info=_NO_IMAGE)
    name = f"{entry.part}: {entry.item.key}" if entry.part else entry.item.key
    return entry._replace(item=Rejected(name, info))
