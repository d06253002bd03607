"""Fetching chunks of a remote lake: several at once, each by one process of the machine, retried during outages."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from filelock import FileLock

from lakeclip.errors import LakeError
from lakeclip.lake import engine, timeouts
from lakeclip.lake.remote.cache import ChunkCache
from lakeclip.lake.remote.chunk_file import Chunk, ChunkFile, MemoryChunk
from lakeclip.lake.storage_errors import StorageFailure, classify_failure, storage_error

_log = logging.getLogger(__name__)

ChunkValues: TypeAlias = MemoryChunk | ChunkFile

#: Seconds for which a run waits for a server that does not answer, before it ends.
PATIENCE_VARIABLE = "LAKECLIP_REMOTE_PATIENCE"

#: Pending requests per process.
PARALLEL = 4
#: Time limit of one request of some 8 MB; doubled at each failure, up to eight times.
REQUEST_SECONDS = 30.0
#: Time limit for opening the dataset during an outage: a few small requests, which show whether the server is back.
OPEN_SECONDS = 10.0
#: After so long without any progress, the user is told.
NOTICE_SECONDS = 10.0
#: Patience with failures that waiting rarely mends: refused credentials (they may be renewed), unknown errors.
SHORT_PATIENCE_SECONDS = 60.0

_PATIENCE_SECONDS = 600.0
_MAX_PAUSE_SECONDS = 5.0
_IDLE_SECONDS = 5.0
_MAX_OPEN_CHUNKS = 128
_MAX_MEMORY_BYTES = 512 * 2**20


@dataclass
class _Request:
    future: Any
    lock: FileLock | None
    started: float
    deadline: float


@dataclass
class _Outage:
    failure: StorageFailure
    message: str
    attempts: int
    last_failure: float

    @property
    def next_attempt(self) -> float:
        return self.last_failure + min(0.25 * 2.0 ** min(self.attempts, 10), _MAX_PAUSE_SECONDS)


class Fetcher:
    """Reader of chunks of one version of a lake, for one process: from the machine's cache, or from the server.

    Args:
        path: the lake's path.
        version: "ID@VERSION".
        encoded: columns to read as encoded bytes.
    """

    def __init__(self, path: str, version: str, encoded: frozenset[str]) -> None:
        self._path = path
        self._version = version
        self._encoded = encoded
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        self._cache = ChunkCache(f"{endpoint} {path} {version}")
        self._state = threading.Condition()
        self._needed: OrderedDict[Chunk, None] = OrderedDict()
        self._prefetched: OrderedDict[Chunk, None] = OrderedDict()
        self._open: OrderedDict[Chunk, ChunkValues] = OrderedDict()
        self._requests: dict[Chunk, _Request] = {}
        self._thread: threading.Thread | None = None
        self._is_busy = self._is_paused = False
        self._dataset: Any = None
        self._outage: _Outage | None = None
        self._last_progress = 0.0
        _fetchers.add(self)

    def get(self, chunks: Sequence[Chunk]) -> list[ChunkValues]:
        """Return the values of chunks; wait until all of them have arrived.

        Args:
            chunks: no more of them than can be open at once.

        Raises:
            LakeError: the server has not answered for as long as the user's patience lasts, or it answers that the data
                does not exist or may not be read.
        """
        assert len(chunks) <= _MAX_OPEN_CHUNKS // 2
        notice = _OutageNotice(self._path, self._cache)
        start = time.monotonic()
        found: dict[Chunk, ChunkValues] = {}
        with self._state:
            try:
                while missing := [chunk for chunk in chunks if chunk not in found and not self._look_up(chunk, found)]:
                    for chunk in missing:
                        self._needed[chunk] = None
                        self._prefetched.pop(chunk, None)
                    self._wake_thread()
                    self._state.wait(0.25)
                    self._check_patience(max(start, self._last_progress), notice)
            finally:
                for chunk in chunks:
                    self._needed.pop(chunk, None)
                notice.end(is_over=len(found) == len(chunks))
        return [found[chunk] for chunk in chunks]

    def prefetch(self, chunks: Iterable[Chunk]) -> None:
        """Start to fetch chunks that will be needed soon, and return at once."""
        with self._state:
            for chunk in chunks:
                if chunk not in self._open and chunk not in self._needed and not self._cache.has(chunk):
                    self._prefetched[chunk] = None
            if self._prefetched:
                self._wake_thread()

    def discard(self, chunk: Chunk) -> None:
        """Remove a chunk that turned out to be damaged."""
        with self._state:
            self._open.pop(chunk, None)
            self._cache.remove(chunk)

    def pause(self, seconds: float) -> None:
        """Wait until all requests are answered, up to this long, and start no new ones until `resume`."""
        with self._state:
            self._is_paused = True
            self._prefetched.clear()
            self._state.wait_for(lambda: not self._requests and not self._is_busy, seconds)

    def resume(self) -> None:
        """Start requests again after `pause`."""
        with self._state:
            self._is_paused = False
            self._state.notify_all()

    # ── in the caller's thread ────────────────────────────────────────────────────────────────────────────────────

    def _look_up(self, chunk: Chunk, found: dict[Chunk, ChunkValues]) -> bool:
        values = self._open.get(chunk) or self._cache.load(chunk)
        if values is None:
            return False
        found[chunk] = values
        self._keep_open(chunk, values)
        return True

    def _keep_open(self, chunk: Chunk, values: ChunkValues) -> None:
        self._open[chunk] = values
        self._open.move_to_end(chunk)
        num_bytes = sum(other.num_bytes for other in self._open.values())
        while len(self._open) > _MAX_OPEN_CHUNKS or (num_bytes > _MAX_MEMORY_BYTES and len(self._open) > 1):
            _, oldest = self._open.popitem(last=False)
            num_bytes -= oldest.num_bytes

    def _check_patience(self, last_progress: float, notice: _OutageNotice) -> None:
        """Raise if nothing has arrived for too long; tell the user if it takes long."""
        quiet_seconds = time.monotonic() - last_progress
        outage = self._outage
        patience = _patience_seconds()
        if outage is not None:
            if outage.failure is StorageFailure.MISSING and outage.attempts >= 2:
                patience = 0.0
            elif outage.failure in (StorageFailure.DENIED, StorageFailure.OTHER):
                patience = min(patience, SHORT_PATIENCE_SECONDS)
        if quiet_seconds > patience:
            raise storage_error(
                outage.failure if outage is not None else StorageFailure.NETWORK,
                self._path,
                f"{outage.message if outage is not None else 'no answer'}; waited {quiet_seconds:.0f} s",
                f"set {PATIENCE_VARIABLE} to the seconds to wait",
            )
        if quiet_seconds > NOTICE_SECONDS:
            notice.begin(quiet_seconds, patience, f" ({outage.message})" if outage is not None else "")

    def _wake_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="lake fetch", daemon=True)
            self._thread.start()
        self._state.notify_all()

    # ── in the fetching thread ────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while True:
            with self._state:
                self._is_busy = False
                self._state.notify_all()
                while not self._requests and (self._is_paused or not (self._needed or self._prefetched)):
                    if not self._state.wait(_IDLE_SECONDS) and not self._is_paused and not self._needed:
                        self._thread = None
                        return
                self._is_busy = True
                chunks = [] if self._is_paused else [*self._needed, *self._prefetched]
            if not self._collect_answers() and not self._start_requests(chunks):
                time.sleep(0.01)

    def _collect_answers(self) -> bool:
        """Handle the requests that have been answered or have timed out; return True if any was answered."""
        any_answered = False
        for chunk, request in list(self._requests.items()):
            if request.future.is_completed():
                any_answered = True
                try:
                    values = request.future.result()
                    if len(values) != chunk.stop - chunk.start:
                        raise ValueError(f"{len(values)} values instead of {chunk.stop - chunk.start}")
                except Exception as error:
                    self._on_failure(chunk, request, error)
                else:
                    self._on_success(chunk, request, values)
            elif time.monotonic() > request.deadline:
                seconds = request.deadline - request.started
                self._on_failure(chunk, request, timeouts.RequestTimeoutError(f"no answer for {seconds:g} s"))
        return any_answered

    def _start_requests(self, chunks: Sequence[Chunk]) -> bool:
        """Request the chunks that are not requested yet, within the limits; return True if any was started."""
        any_started = False
        for chunk in chunks:
            outage = self._outage
            # One request is enough to learn whether the server is back.
            if len(self._requests) >= (PARALLEL if outage is None else 1):
                break
            if outage is not None and time.monotonic() < outage.next_attempt:
                break
            if chunk not in self._requests:
                any_started |= self._start_request(chunk)
        return any_started

    def _start_request(self, chunk: Chunk) -> bool:
        if self._use_cached(chunk):
            return True
        lock = None
        if self._cache.is_on:
            try:
                lock = self._cache.lock(chunk.file_name)
            except OSError:
                pass  # then each process fetches for itself
            else:
                if lock is None:  # another process is fetching it
                    with self._state:
                        self._prefetched.pop(chunk, None)
                    return False
        if self._use_cached(chunk):  # another process has just fetched it
            self._unlock(lock)
            return True
        now = time.monotonic()
        attempts = self._outage.attempts if self._outage is not None else 0
        request = _Request(None, lock, now, now + REQUEST_SECONDS * 2 ** min(attempts, 3))
        try:
            if self._dataset is None:
                self._dataset = engine.open_version(
                    self._path, self._version, OPEN_SECONDS if self._outage is not None else engine.OPEN_SECONDS
                )
            column = self._dataset[chunk.column]
            read = column.get_bytes_async if chunk.column in self._encoded else column.get_async
            request.future = read(slice(chunk.start, chunk.stop))
        except Exception as error:
            self._on_failure(chunk, request, error)
        else:
            timeouts.track_request(request.future)
            request.deadline += time.monotonic() - now
            with self._state:
                self._requests[chunk] = request
        return True

    def _unlock(self, lock: FileLock | None) -> None:
        if lock is not None:
            self._cache.unlock(lock)

    def _use_cached(self, chunk: Chunk) -> bool:
        file = self._cache.load(chunk)
        if file is None:
            return False
        with self._state:
            self._publish(chunk, file)
        return True

    def _on_success(self, chunk: Chunk, request: _Request, values: Any) -> None:
        file = self._cache.store(chunk, values)
        self._unlock(request.lock)
        with self._state:
            self._outage = None
            self._requests.pop(chunk, None)
            self._publish(chunk, file or MemoryChunk(values))

    def _publish(self, chunk: Chunk, values: ChunkValues) -> None:
        self._last_progress = time.monotonic()
        self._prefetched.pop(chunk, None)
        is_needed = chunk in self._needed
        self._needed.pop(chunk, None)
        if is_needed or isinstance(values, MemoryChunk):
            self._keep_open(chunk, values)
        self._state.notify_all()

    def _on_failure(self, chunk: Chunk, request: _Request, error: Exception) -> None:
        self._unlock(request.lock)
        self._dataset = None  # after a failed read the handle can never read that chunk again
        message = error.found or error.what if isinstance(error, LakeError) else engine.one_line(error)
        with self._state:
            self._requests.pop(chunk, None)
            self._prefetched.pop(chunk, None)
            before = self._outage
            # Requests that were pending together fail together: that counts as one failure.
            is_same = before is not None and request.started < before.last_failure
            attempts = (before.attempts if before is not None else 0) + (0 if is_same else 1)
            self._outage = _Outage(classify_failure(error), message, attempts, time.monotonic())
            self._state.notify_all()


class _OutageNotice:
    """Log messages about an outage, when it is noticed and when it has ended, from one process of the machine."""

    def __init__(self, path: str, cache: ChunkCache) -> None:
        self._path = path
        self._cache = cache
        self._created = time.time()
        self._outage_start: float | None = None
        self._lock: FileLock | None = None
        self._is_silent = False

    def begin(self, quiet_seconds: float, patience: float, reason: str) -> None:
        if self._outage_start is not None or self._is_silent:
            return
        if self._cache.is_on:
            with contextlib.suppress(OSError):
                lock = self._cache.lock("waiting")
                if lock is None:  # another process has told the user
                    return
                if self._cache.last_outage_end() > self._created:
                    self._is_silent = True  # another process has told the user, and the outage is over
                    self._cache.unlock(lock)
                    return
                self._lock = lock
        self._outage_start = time.monotonic() - quiet_seconds
        _log.warning(
            "%s has not answered for %.0f s%s; waiting for it, up to %.0f s",
            self._path,
            quiet_seconds,
            reason,
            patience,
        )

    def end(self, *, is_over: bool) -> None:
        if self._outage_start is None:
            return
        if is_over:
            _log.warning("%s answers again, after %.0f s", self._path, time.monotonic() - self._outage_start)
        self._cache.note_outage_end()
        if self._lock is not None:
            self._cache.unlock(self._lock)


def _patience_seconds() -> float:
    try:
        return float(os.environ[PATIENCE_VARIABLE])
    except (KeyError, ValueError):
        return _PATIENCE_SECONDS


# Deep Lake crashes when a process is forked, or ends, while it reads.
_fetchers: weakref.WeakSet[Fetcher] = weakref.WeakSet()
_inherited: list[Fetcher] = []


def _pause(seconds: float) -> None:
    for fetcher in list(_fetchers):
        fetcher.pause(seconds)


def _resume() -> None:
    for fetcher in list(_fetchers):
        fetcher.resume()


def _forget_in_child() -> None:
    # Kept alive, not dropped: Deep Lake's destructors need threads that a forked process does not have.
    _inherited.extend(_fetchers)
    _fetchers.clear()


timeouts.on_fork(_pause, _resume)
os.register_at_fork(after_in_child=_forget_in_child)


@atexit.register
def _pause_at_exit() -> None:
    _pause(timeouts.EXIT_SECONDS)
