"""`Downloads`, a source that downloads images ahead and yields them in order."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from lakeclip.ingestion.download.fetch import DownloadError, Fetcher
from lakeclip.ingestion.download.memory import MemoryBudget, Reservation
from lakeclip.ingestion.download.network import is_public, open_session
from lakeclip.ingestion.download.options import DownloadOptions
from lakeclip.ingestion.download.shrink import check_and_shrink
from lakeclip.ingestion.sources.base import Sample, Source, SourceWrapper
from lakeclip.lake.folder.records import Rejected

#: Number of samples that are read ahead, so that a slow host does not delay downloads from others.
WINDOW = 4_096
#: Budget in bytes for images that are being downloaded or wait to be yielded.
MEMORY = 128 * 2**20
#: Limit on the bytes of waiting images that the source itself contains.
_SOURCE_BYTES = 64 * 2**20
_MAX_THREADS = 8


class _Pending(NamedTuple):
    item: Sample | Rejected
    part: str
    position: int
    download: Future[Download] | None


class Download(NamedTuple):
    """Outcome of a download.

    Attributes:
        data: the image; empty if the download failed.
        reason: reason of the failure, or "".
        held: bytes of the memory budget that the download holds.
    """

    data: bytes
    reason: str
    held: int


class Downloads(SourceWrapper):
    """A source with the images downloaded that it only has URLs of (a `Source`).

    Samples with an image, or without a URL, are unchanged. The others get their image, or the reason of the failure.

    Args:
        source: the source. It is read in the iterating thread, `WINDOW` samples ahead.
        options: limits of the downloads.

    Attributes:
        num_fetched: number of images that were downloaded, among the samples that were yielded.
        num_failed: number of downloads that failed.
    """

    def __init__(self, source: Source, options: DownloadOptions) -> None:
        super().__init__(source)
        self.num_fetched = 0
        self.num_failed = 0
        self._part = ""
        self._position = 0
        self._options = options
        self._allowed = _allow_all if options.allow_private else is_public

    @property
    def part(self) -> str:
        """Part of the sample that was yielded last; the source has read ahead of it."""
        return self._part

    @property
    def position(self) -> int:
        """Position of the sample that was yielded last."""
        return self._position

    def __iter__(self) -> Iterator[Sample | Rejected]:
        waiting: deque[_Pending] = deque()
        source_bytes = 0
        with _Downloader(self._options, self._allowed) as downloader:
            for item in self._source:
                download = None
                if isinstance(item, Sample) and not item.image and item.url:
                    download = downloader.start(item.url)
                elif isinstance(item, Sample):
                    source_bytes += len(item.image)
                waiting.append(_Pending(item, self._source.part, self._source.position, download))
                while waiting and (len(waiting) >= WINDOW or source_bytes > _SOURCE_BYTES or _is_ready(waiting[0])):
                    source_bytes -= self._size_in_source(waiting[0])
                    yield self._next(waiting.popleft(), downloader)
            while waiting:
                yield self._next(waiting.popleft(), downloader)
        self._position = self._source.position

    @staticmethod
    def _size_in_source(entry: _Pending) -> int:
        return len(entry.item.image) if entry.download is None and isinstance(entry.item, Sample) else 0

    def _next(self, entry: _Pending, downloader: _Downloader) -> Sample | Rejected:
        self._part, self._position = entry.part, entry.position
        if entry.download is None:
            return entry.item
        download = downloader.finish(entry.download)
        if download.reason:
            self.num_failed += 1
        else:
            self.num_fetched += 1
        assert isinstance(entry.item, Sample), "only samples are downloaded"
        return entry.item._replace(image=download.data, unusable=download.reason)


def _is_ready(entry: _Pending) -> bool:
    return entry.download is None or entry.download.done()


def _allow_all(_: str) -> bool:
    return True


class _Downloader:
    """Downloader with its own thread and event loop. Leaving the `with` block cancels unfinished downloads."""

    def __init__(self, options: DownloadOptions, allowed: Callable[[str], bool]) -> None:
        self._options = options
        self._allowed = allowed
        self._started = 0
        self._finished = 0
        self._ready: Future[None] = Future()
        # A daemon thread, so that the program can exit even if the `with` block is never left.
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    def __enter__(self) -> _Downloader:
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def start(self, url: str) -> Future[Download]:
        """Start a download, the last in the order."""
        self._started += 1
        return asyncio.run_coroutine_threadsafe(self._download(url, self._started - 1), self._loop)

    def finish(self, future: Future[Download]) -> Download:
        """Wait for the first unfinished download in the order, and release its memory."""
        download = future.result()
        self._loop.call_soon_threadsafe(self._budget.consume, self._finished, download.held)
        self._finished += 1
        return download

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._budget = MemoryBudget(MEMORY)
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="shrink") as self._threads:
            async with open_session(self._options, self._allowed) as session:
                self._fetcher = Fetcher(session, self._options, self._allowed)
                self._ready.set_result(None)
                await self._stop.wait()
                unfinished = asyncio.all_tasks() - {asyncio.current_task()}
                for task in unfinished:
                    task.cancel()
                await asyncio.gather(*unfinished, return_exceptions=True)

    async def _download(self, url: str, number: int) -> Download:
        memory = Reservation(self._budget, number)
        data, reason = b"", ""
        try:
            body = await self._fetcher.fetch(url, memory)
            checked = await self._loop.run_in_executor(
                self._threads, check_and_shrink, body, self._options.image_size, self._options.resize
            )
            data, reason = (checked, "") if isinstance(checked, bytes) else (b"", checked)
        except DownloadError as failure:
            reason = failure.reason
        memory.shrink(len(data))
        return Download(data, reason, memory.held)
