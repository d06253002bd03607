"""Fetching chunks of a remote lake: several at once, each by one process of the machine, for as long as it takes."""

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
from typing import Any

from lakeclip.errors import LakeError
from lakeclip.lake import deadline, engine
from lakeclip.lake.remote.cache import Cache, Chunk, Held, Lock, Stored
from lakeclip.lake.trouble import Trouble, explain_trouble, trouble

_log = logging.getLogger(__name__)

#: Seconds for which a run waits for a server that does not answer, before it ends.
PATIENCE_VARIABLE = "LAKECLIP_REMOTE_PATIENCE"

PARALLEL = 4
"""Requests on their way at once, per process."""
DEADLINE_SECONDS = 30.0
"""For one request of some 8 MB; doubled, up to eight times, when it was not enough."""
OPEN_SECONDS = 10.0
"""For opening the dataset in the course of a run: a few small requests, which also show whether the server is back."""
NOTICE_SECONDS = 10.0
"""Without any progress for so long, the user is told."""
SHORT_PATIENCE_SECONDS = 60.0
"""For what waiting rarely mends: credentials that were refused (they may be being renewed), errors of unknown kinds."""

_PATIENCE_SECONDS = 600.0
_LONGEST_PAUSE = 5.0
_IDLE_SECONDS = 5.0
_FORK_SECONDS = 10.0
_MOST_OPEN = 128
_MOST_HELD_BYTES = 512 * 2**20


@dataclass
class _Request:
    future: Any
    lock: Lock | None
    started: float
    deadline: float


@dataclass
class _Outage:
    since: float
    kind: Trouble
    said: str
    attempts: int
    last: float

    @property
    def next_try(self) -> float:
        return self.last + min(0.25 * 2.0 ** min(self.attempts, 10), _LONGEST_PAUSE)


class Fetcher:
    """Gets chunks of one version of a lake, for one process: from the machine's cache, else from the server.

    Args:
        path: the lake's path.
        version: "ID@VERSION".
        encoded: columns that have to be read as the bytes they are stored in.
    """

    def __init__(self, path: str, version: str, encoded: frozenset[str]) -> None:
        self._path = path
        self._version = version
        self._encoded = encoded
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        self._cache = Cache(f"{endpoint} {path} {version}")
        self._state = threading.Condition()
        self._wanted: OrderedDict[Chunk, None] = OrderedDict()
        self._hinted: OrderedDict[Chunk, None] = OrderedDict()
        self._open: OrderedDict[Chunk, Held | Stored] = OrderedDict()
        self._running: dict[Chunk, _Request] = {}
        self._thread: threading.Thread | None = None
        self._is_busy = self._is_paused = False
        self._dataset: Any = None
        self._outage: _Outage | None = None
        self._progress = 0.0
        _fetchers.add(self)

    def take(self, chunks: Sequence[Chunk]) -> list[Held | Stored]:
        """The values of chunks, once they are all here.

        Args:
            chunks: no more of them than can be open at once.

        Raises:
            LakeError: the server has not answered for as long as the user's patience lasts, or answers that there is no
                such data, or that it may not be read.
        """
        assert len(chunks) <= _MOST_OPEN // 2
        notice = _Notice(self._path, self._cache)
        began = time.monotonic()
        found: dict[Chunk, Held | Stored] = {}
        with self._state:
            try:
                while missing := [chunk for chunk in chunks if chunk not in found and not self._recall(chunk, found)]:
                    for chunk in missing:
                        self._wanted[chunk] = None
                        self._hinted.pop(chunk, None)
                    self._work()
                    self._state.wait(0.25)
                    self._judge(max(began, self._progress), notice)
            finally:
                for chunk in chunks:
                    self._wanted.pop(chunk, None)
                notice.end(is_over=len(found) == len(chunks))
        return [found[chunk] for chunk in chunks]

    def hint(self, chunks: Iterable[Chunk]) -> None:
        """Begin to fetch chunks that will be wanted, and return at once."""
        with self._state:
            for chunk in chunks:
                if chunk not in self._open and chunk not in self._wanted and not self._cache.has(chunk):
                    self._hinted[chunk] = None
            if self._hinted:
                self._work()

    def forget(self, chunk: Chunk) -> None:
        """Do not trust what is here of a chunk."""
        with self._state:
            self._open.pop(chunk, None)
            self._cache.remove(chunk)

    def pause(self, seconds: float) -> None:
        """Finish what is on its way, and start nothing new until `go_on`."""
        with self._state:
            self._is_paused = True
            self._hinted.clear()
            self._state.wait_for(lambda: not self._running and not self._is_busy, seconds)

    def go_on(self) -> None:
        """See `pause`."""
        with self._state:
            self._is_paused = False
            self._state.notify_all()

    def leave_to_parent(self) -> None:
        """In a forked process: let its parent's locks be its parent's alone."""
        for request in self._running.values():
            if request.lock is not None:
                request.lock.close()

    # ── in the caller's thread ────────────────────────────────────────────────────────────────────────────────────

    def _recall(self, chunk: Chunk, found: dict[Chunk, Held | Stored]) -> bool:
        values = self._open.get(chunk) or self._cache.load(chunk)
        if values is None:
            return False
        found[chunk] = values
        self._remember(chunk, values)
        return True

    def _remember(self, chunk: Chunk, values: Held | Stored) -> None:
        self._open[chunk] = values
        self._open.move_to_end(chunk)
        held = sum(other.num_bytes for other in self._open.values())
        while len(self._open) > _MOST_OPEN or (held > _MOST_HELD_BYTES and len(self._open) > 1):
            _, oldest = self._open.popitem(last=False)
            held -= oldest.num_bytes

    def _judge(self, quiet_since: float, notice: _Notice) -> None:
        """Whether to wait on. Nothing has come since `quiet_since`."""
        now = time.monotonic()
        outage = self._outage
        patience = _patience()
        if outage is not None:
            if outage.kind is Trouble.MISSING and outage.attempts >= 2:
                patience = 0.0
            elif outage.kind in (Trouble.DENIED, Trouble.OTHER):
                patience = min(patience, SHORT_PATIENCE_SECONDS)
        if now - quiet_since > patience:
            raise explain_trouble(
                outage.kind if outage is not None else Trouble.NETWORK,
                self._path,
                f"{outage.said if outage is not None else 'no answer'}; waited {now - quiet_since:.0f} s",
                f"${PATIENCE_VARIABLE} is how many seconds to wait for it",
            )
        if now - quiet_since > NOTICE_SECONDS:
            notice.begin(now - quiet_since, patience, f" ({outage.said})" if outage is not None else "")

    def _work(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="lake fetch", daemon=True)
            self._thread.start()
        self._state.notify_all()

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while True:
            with self._state:
                self._is_busy = False
                self._state.notify_all()
                while not self._running and (self._is_paused or not (self._wanted or self._hinted)):
                    if not self._state.wait(_IDLE_SECONDS) and not self._is_paused and not self._wanted:
                        self._thread = None
                        return
                self._is_busy = True
                chunks = [] if self._is_paused else [*self._wanted, *self._hinted]
            if not self._collect() and not self._start(chunks):
                time.sleep(0.01)

    def _collect(self) -> bool:
        """Take what has come."""
        has_come = False
        for chunk, request in list(self._running.items()):
            if request.future.is_completed():
                has_come = True
                try:
                    values = request.future.result()
                    if len(values) != chunk.stop - chunk.start:
                        raise ValueError(f"{len(values)} values instead of {chunk.stop - chunk.start}")
                except Exception as error:
                    self._failed(chunk, request, error)
                else:
                    self._came(chunk, request, values)
            elif time.monotonic() > request.deadline:
                seconds = request.deadline - request.started
                self._failed(chunk, request, deadline.TookTooLongError(f"no answer for {seconds:g} s"))
        return has_come

    def _start(self, chunks: Sequence[Chunk]) -> bool:
        """Ask for what is not on its way."""
        has_started = False
        for chunk in chunks:
            outage = self._outage
            # One request is enough to learn whether the server is back.
            if len(self._running) >= (PARALLEL if outage is None else 1):
                break
            if outage is not None and time.monotonic() < outage.next_try:
                break
            if chunk not in self._running:
                has_started |= self._start_one(chunk)
        return has_started

    def _start_one(self, chunk: Chunk) -> bool:
        if self._from_cache(chunk):
            return True
        lock = None
        if self._cache.is_on:
            try:
                lock = self._cache.lock(chunk.file_name)
            except OSError:
                pass  # then each process fetches for itself
            else:
                if lock is None:  # another process is at it
                    with self._state:
                        self._hinted.pop(chunk, None)
                    return False
        if self._from_cache(chunk):  # it was just done
            if lock is not None:
                lock.release()
            return True
        now = time.monotonic()
        request = _Request(None, lock, now, now + DEADLINE_SECONDS * 2 ** min(self._attempts, 3))
        try:
            if self._dataset is None:
                self._dataset = engine.open_version(
                    self._path, self._version, OPEN_SECONDS if self._outage is not None else engine.OPEN_SECONDS
                )
            column = self._dataset[chunk.column]
            read = column.get_bytes_async if chunk.column in self._encoded else column.get_async
            request.future = read(slice(chunk.start, chunk.stop))
        except Exception as error:
            self._failed(chunk, request, error)
        else:
            deadline.watch(request.future)
            request.deadline += time.monotonic() - now
            with self._state:
                self._running[chunk] = request
        return True

    @property
    def _attempts(self) -> int:
        return self._outage.attempts if self._outage is not None else 0

    def _from_cache(self, chunk: Chunk) -> bool:
        stored = self._cache.load(chunk)
        if stored is None:
            return False
        with self._state:
            self._arrived(chunk, stored)
        return True

    def _came(self, chunk: Chunk, request: _Request, values: Any) -> None:
        stored = self._cache.store(chunk, values)
        if request.lock is not None:
            request.lock.release()
        with self._state:
            self._outage = None
            self._running.pop(chunk, None)
            self._arrived(chunk, stored or Held(values))

    def _arrived(self, chunk: Chunk, values: Held | Stored) -> None:
        self._progress = time.monotonic()
        self._hinted.pop(chunk, None)
        if self._wanted.pop(chunk, "no") is None or isinstance(values, Held):
            self._remember(chunk, values)
        self._state.notify_all()

    def _failed(self, chunk: Chunk, request: _Request, error: Exception) -> None:
        if request.lock is not None:
            request.lock.release()
        self._dataset = None  # a failed read leaves the handle unable to read that chunk ever again
        now = time.monotonic()
        kind = trouble(error)
        said = error.found or error.what if isinstance(error, LakeError) else engine.one_line(error)
        with self._state:
            self._running.pop(chunk, None)
            self._hinted.pop(chunk, None)
            before = self._outage
            # Requests that were on their way together fail together: that is one failure.
            again = before is not None and request.started < before.last
            attempts = (before.attempts if before is not None else 0) + (0 if again else 1)
            self._outage = _Outage(now if before is None else before.since, kind, said, attempts, now)
            self._state.notify_all()


class _Notice:
    """What the user is told of an outage: that the run waits, and that it goes on. By one process of the machine."""

    def __init__(self, path: str, cache: Cache) -> None:
        self._path = path
        self._cache = cache
        self._began = time.time()
        self._told_at: float | None = None
        self._lock: Lock | None = None
        self._is_silent = False

    def begin(self, seconds: float, patience: float, said: str) -> None:
        if self._told_at is not None or self._is_silent:
            return
        if self._cache.is_on:
            with contextlib.suppress(OSError):
                self._lock = self._cache.lock("waiting")
                if self._lock is None:
                    return
                if self._cache.last_outage() > self._began:
                    self._is_silent = True  # it was told, and is over
                    self._lock.release()
                    return
        self._told_at = time.monotonic() - seconds
        _log.warning(
            "%s has not answered for %.0f s%s; waiting for it, up to %.0f s", self._path, seconds, said, patience
        )

    def end(self, *, is_over: bool) -> None:
        if self._told_at is None:
            return
        if is_over:
            _log.warning("%s answers again, after %.0f s", self._path, time.monotonic() - self._told_at)
        self._cache.note_outage()
        if self._lock is not None:
            self._lock.release()


def _patience() -> float:
    try:
        return float(os.environ[PATIENCE_VARIABLE])
    except (KeyError, ValueError):
        return _PATIENCE_SECONDS


# Deep Lake crashes when a process is forked, or ends, while it reads.
_fetchers: weakref.WeakSet[Fetcher] = weakref.WeakSet()


def _before_fork() -> None:
    for fetcher in list(_fetchers):
        fetcher.pause(_FORK_SECONDS)


def _in_parent() -> None:
    for fetcher in list(_fetchers):
        fetcher.go_on()


def _in_child() -> None:
    _inherited.extend(_fetchers)
    for fetcher in _inherited:
        fetcher.leave_to_parent()
    _fetchers.clear()


_inherited: list[Fetcher] = []
os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)


@atexit.register
def _end() -> None:
    for fetcher in list(_fetchers):
        fetcher.pause(deadline.EXIT_SECONDS)
