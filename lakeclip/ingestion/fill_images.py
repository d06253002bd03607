"""Download the images that a lake lacks into their rows, for the first time or after failures."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import numpy as np

from lakeclip.errors import LakeError
from lakeclip.ingestion.download import DownloadOptions, Downloads
from lakeclip.ingestion.progress import ProgressBar
from lakeclip.ingestion.result import IngestResult
from lakeclip.ingestion.sources.base import Sample, Samples
from lakeclip.ingestion.sources.column_roles import infer_roles
from lakeclip.ingestion.validate import validate_samples
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake import engine
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.schema import COLUMNS, UNUSABLE

#: Number of URLs per read.
_BLOCK = 2_000


def fill_images(
    path: str,
    options: DownloadOptions,
    *,
    query: str | None = None,
    url_column: str | None = None,
    progress: bool | None = None,
) -> IngestResult:
    """Download the image of every row that has a URL and no image, and store it in that row.

    An interruption leaves only complete rows, and the next call resumes. The column `unusable` holds the reason of each
    failure; the next call tries these rows again.

    Args:
        path: a lake that lakeclip wrote, with URLs.
        options: limits of the downloads.
        query: WHERE clause that selects the rows to try, such as `contains(unusable, 'timed out')`.
        url_column: column with the URLs; inferred by default.
        progress: whether to show a progress bar; by default only if stderr is a terminal.

    Raises:
        LakeError: the lake has no such rows, or the query is wrong.
        OutputError: the lake cannot be written. What has been committed stays.
    """
    lake = open_lake(path, query, include_unusable=True)
    if lake.columns.get(UNUSABLE) != "text":
        raise LakeError(f"no row of the lake at {path} lacks its image", next_step="there is nothing to download")
    metadata = {name: kind for name, kind in lake.columns.items() if name not in COLUMNS}
    column = infer_roles(metadata, f"the lake at {path}", image_column=url_column, files=False).url
    with LakeWriter(path, existing=True) as writer:
        started = time.perf_counter()
        rows = _rows_without_image(lake)
        result = IngestResult(engine.normalize_path(path), [path], rows_before=lake.num_total_rows - len(rows))
        source = Downloads(Samples(path, _url_samples(lake, rows, column), len(rows)), options)
        with warnings.catch_warnings(), ProgressBar([source], progress) as bar:
            warnings.simplefilter("ignore")
            for _, item, info in validate_samples([source]):
                assert not isinstance(item, Rejected), "a sample with a URL is never rejected"
                assert info is not None, "only rejected items have no ImageInfo"
                writer.replace(int(item.key), item.image, info, item.unusable)
                if item.unusable:
                    result.add_unusable(item.unusable)
                else:
                    result.rows += 1
                bar.update(result.rows)
    result.add_downloads(source.num_fetched, source.num_failed)
    result.columns = writer.columns
    result.mapping = {path: {"image address": column}}
    result.seconds = time.perf_counter() - started
    return result


def _rows_without_image(lake: Lake) -> list[int]:
    rows: list[int] = []
    for start in range(0, len(lake), 100_000):
        block = np.arange(start, min(start + 100_000, len(lake)))
        rows += [row for row, kind in zip(block.tolist(), lake.values("format", block), strict=True) if not kind]
    return rows


def _url_samples(lake: Lake, indices: list[int], column: str) -> Iterator[Sample]:
    """Yield a sample for each row, with the row number as its key."""
    for start in range(0, len(indices), _BLOCK):
        block = indices[start : start + _BLOCK]
        for row, url in zip(lake.base_rows(block).tolist(), lake.values(column, block), strict=True):
            yield Sample(str(row), b"", (), {}, str(url or ""), "" if url else "no address")
