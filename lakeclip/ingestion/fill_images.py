"""Filling in a lake's missing images from their addresses, in place: the first time, or again after failures."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import numpy as np

from lakeclip.errors import LakeError
from lakeclip.lake import engine
from lakeclip.lake.check import check_all
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.download import DownloadOptions, Downloads
from lakeclip.lake.ingest import Bar, IngestReport
from lakeclip.lake.schema import COLUMNS, UNUSABLE
from lakeclip.lake.sources.base import Rejected, Sample, Samples
from lakeclip.lake.sources.roles import find_roles
from lakeclip.lake.write import LakeWriter

#: Addresses read at once.
_BLOCK = 2_000


def fill_images(
    path: str, options: DownloadOptions, *, query: str | None = None, url_column: str | None = None
) -> IngestReport:
    """Download the image of every row that has an address and no image, and put it into that row.

    Stopped at any moment, it leaves whole rows, and goes on when it is called again. What fails keeps its reason in the
    column `unusable`, and is tried again by the next call.

    Args:
        path: a lake that lakeclip made, of rows with addresses.
        options: limits and manners of the downloads.
        query: which of those rows to try, such as `contains(unusable, 'timed out')`.
        url_column: column with the addresses; found by default.

    Raises:
        LakeError: it is no such lake, or the query is wrong.
        OutputError: it cannot be written; what has been committed stays.
    """
    lake = open_lake(path, query, include_unusable=True)
    if lake.columns.get(UNUSABLE) != "text":
        raise LakeError(f"no row of the lake at {path} lacks its image", next_step="there is nothing to download")
    texts = {name: kind for name, kind in lake.columns.items() if name not in COLUMNS}
    column = find_roles(texts, f"the lake at {path}", image_column=url_column, files=False).url
    with LakeWriter(path, existing=True) as writer:
        started = time.perf_counter()
        rows = _without_image(lake)
        report = IngestReport(engine.normal_path(path), [path], rows_before=lake.total_rows - len(rows))
        source = Downloads(Samples(path, _addresses(lake, rows, column), len(rows)), options)
        with warnings.catch_warnings(), Bar([source]) as bar:
            warnings.simplefilter("ignore")
            for _, item, info in check_all([source]):
                assert not isinstance(item, Rejected), "a row without an image stays one"
                assert info is not None, "so it has an ImageInfo, if an empty one"
                writer.replace(int(item.key), item.image, info, item.unusable)
                if item.unusable:
                    report.unusable[item.unusable.partition(":")[0]] += 1
                else:
                    report.rows += 1
                bar.show(report.rows)
    report.columns = writer.columns
    report.mapping = {path: {"image address": column}}
    report.seconds = time.perf_counter() - started
    return report


def _without_image(lake: Lake) -> list[int]:
    """Indices of the rows that lack an image."""
    found: list[int] = []
    for start in range(0, len(lake), 100_000):
        places = np.arange(start, min(start + 100_000, len(lake)))
        found += [place for place, kind in zip(places.tolist(), lake.values("format", places), strict=True) if not kind]
    return found


def _addresses(lake: Lake, indices: list[int], column: str) -> Iterator[Sample]:
    """Rows as samples whose key is the number of the row."""
    for start in range(0, len(indices), _BLOCK):
        block = indices[start : start + _BLOCK]
        for row, url in zip(lake.base_rows(block).tolist(), lake.values(column, block), strict=True):
            yield Sample(str(row), b"", (), {}, str(url or ""), "" if url else "no address")
