"""A source whose addresses have become pictures: fetched ahead by the thousand, handed on in order."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from lakeclip.lake.download.fetch import FailedError, Fetcher
from lakeclip.lake.download.memory import Claim, Memory
from lakeclip.lake.download.network import is_public, open_session
from lakeclip.lake.download.options import DownloadOptions
from lakeclip.lake.download.shrink import check_and_shrink
from lakeclip.lake.sources.base import Around, Rejected, Sample, Source

#: What is read of the source ahead of the sample that is handed on. It lets a host be slow without holding up others.
WINDOW = 4_096
#: Bytes of downloaded pictures that wait for their turn, and are being received.
MEMORY = 128 * 2**20
#: The same of pictures that the source has brought itself.
_BROUGHT = 64 * 2**20
_MAX_THREADS = 8


class _Pending(NamedTuple):
    item: Sample | Rejected
    part: str
    position: int
    picture: Future[Picture] | None


class Picture(NamedTuple):
    """What came of a download.

    Attributes:
        data: the image; empty if there is none.
        reason: why there is none.
        held: bytes of `Memory` that it takes up.
    """

    data: bytes
    reason: str
    held: int


class Downloads(Around):
    """A source, with the pictures that it only gives addresses of (a `Source`).

    What has a picture, or no address, passes unchanged. The rest gets its picture, or the reason why there is none.

    Args:
        source: what to read. It is read in the thread that iterates, and `WINDOW` samples ahead.
        options: limits and manners.
    """

    def __init__(self, source: Source, options: DownloadOptions) -> None:
        super().__init__(source)
        self._part = ""
        self._position = 0
        self._options = options
        self._allowed = _anywhere if options.allow_private else is_public

    @property
    def part(self) -> str:
        """Of the sample that was handed on last; the source is ahead of it."""
        return self._part

    @property
    def position(self) -> int:
        """Of the sample that was handed on last."""
        return self._position

    def __iter__(self) -> Iterator[Sample | Rejected]:
        waiting: deque[_Pending] = deque()
        brought = 0
        with _Downloader(self._options, self._allowed) as downloader:
            for item in self._source:
                picture = None
                if isinstance(item, Sample) and not item.image and item.url:
                    picture = downloader.start(item.url)
                elif isinstance(item, Sample):
                    brought += len(item.image)
                waiting.append(_Pending(item, self._source.part, self._source.position, picture))
                while waiting and (len(waiting) >= WINDOW or brought > _BROUGHT or _is_ready(waiting[0])):
                    brought -= self._brought_by(waiting[0])
                    yield self._next(waiting.popleft(), downloader)
            while waiting:
                yield self._next(waiting.popleft(), downloader)
        self._position = self._source.position

    @staticmethod
    def _brought_by(entry: _Pending) -> int:
        return len(entry.item.image) if entry.picture is None and isinstance(entry.item, Sample) else 0

    def _next(self, entry: _Pending, downloader: _Downloader) -> Sample | Rejected:
        self._part, self._position = entry.part, entry.position
        if entry.picture is None:
            return entry.item
        picture = downloader.finish(entry.picture)
        assert isinstance(entry.item, Sample), "nothing else is downloaded"
        return entry.item._replace(image=picture.data, unusable=picture.reason)


def _is_ready(entry: _Pending) -> bool:
    return entry.picture is None or entry.picture.done()


def _anywhere(_: str) -> bool:
    return True


class _Downloader:
    """Fetches addresses in a thread of its own, which ends with the `with` block, whatever is still under way."""

    def __init__(self, options: DownloadOptions, allowed: Callable[[str], bool]) -> None:
        self._options = options
        self._allowed = allowed
        self._started = 0
        self._finished = 0
        self._ready: Future[None] = Future()
        # A daemon, so that the program can end even if nobody ends the `with` block.
        self._thread = threading.Thread(target=self._run, name="download", daemon=True)

    def __enter__(self) -> _Downloader:
        self._thread.start()
        self._ready.result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def start(self, url: str) -> Future[Picture]:
        """Begin a download; it is the last in the order."""
        self._started += 1
        return asyncio.run_coroutine_threadsafe(self._download(url, self._started - 1), self._loop)

    def finish(self, download: Future[Picture]) -> Picture:
        """Wait for a download, the first in the order of those that are left, and let go of its memory."""
        picture = download.result()
        self._loop.call_soon_threadsafe(self._memory.consumed, self._finished, picture.held)
        self._finished += 1
        return picture

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
        self._memory = Memory(MEMORY)
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="shrink") as self._threads:
            async with open_session(self._options, self._allowed) as session:
                self._fetcher = Fetcher(session, self._options)
                self._ready.set_result(None)
                await self._stop.wait()
                unfinished = asyncio.all_tasks() - {asyncio.current_task()}
                for task in unfinished:
                    task.cancel()
                await asyncio.gather(*unfinished, return_exceptions=True)

    async def _download(self, url: str, number: int) -> Picture:
        claim = Claim(self._memory, number)
        data, reason = b"", ""
        try:
            body = await self._fetcher.fetch(url, claim)
            checked = await self._loop.run_in_executor(
                self._threads, check_and_shrink, body, self._options.image_size, self._options.resize
            )
            data, reason = (checked, "") if isinstance(checked, bytes) else (b"", checked)
        except FailedError as failure:
            reason = failure.reason
        claim.shrink(len(data))
        return Picture(data, reason, claim.held)
