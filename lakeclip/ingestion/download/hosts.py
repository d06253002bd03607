"""Rate limits: simultaneous requests, requests per second and host, and no requests to hosts that are down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lakeclip.ingestion.download.options import DownloadOptions

#: After this many failed requests in a row a host counts as down, and gets no requests for `DOWN_FOR` seconds. Without
#: this, a thousand URLs of one dead host would block everything for hours.
DOWN_AFTER = 12
DOWN_FOR = 600.0
#: Seconds for which a name that leads to a private address is refused without another lookup.
REFUSED_FOR = 60.0
#: Limit on the number of hosts in memory; beyond it, idle hosts are removed.
_MAX_HOSTS = 10_000


class Host:
    """State of one host.

    Attributes:
        users: number of downloads that send requests to the host, or wait to do so.
        semaphore: limits the simultaneous requests.
        start_lock: held while a download waits to start its request, so that requests start one at a time.
        next_start: earliest time of the next request.
    """

    def __init__(self, per_host: int) -> None:
        self.users = 0
        self.semaphore = asyncio.Semaphore(per_host)
        self.start_lock = asyncio.Lock()
        self.next_start = 0.0
        self._refusal = ""
        self._refused_until = 0.0
        self._failures = 0
        self._down_until = 0.0

    @property
    def is_down(self) -> bool:
        """True if the host gets no requests at present, because too many in a row failed."""
        return asyncio.get_running_loop().time() < self._down_until

    @property
    def refusal(self) -> str:
        """Reason why the host gets no requests, because its name leads to a private address; or ""."""
        return self._refusal if asyncio.get_running_loop().time() < self._refused_until else ""

    def refuse(self, reason: str) -> None:
        """Refuse requests for a minute, without waiting and without looking the name up again."""
        self._refusal, self._refused_until = reason, asyncio.get_running_loop().time() + REFUSED_FOR

    def record(self, *, failed: bool) -> None:
        """Count a failure of the host; a request that did not fail resets the count."""
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= DOWN_AFTER:
            self._down_until = asyncio.get_running_loop().time() + DOWN_FOR

    def pause(self, seconds: float) -> None:
        """Delay the next request to the host."""
        self.next_start = max(self.next_start, asyncio.get_running_loop().time() + seconds)

    async def wait(self) -> None:
        """Wait until the next request may start; do not wait if there will be none."""
        while (
            not self.is_down and not self.refusal and (delay := self.next_start - asyncio.get_running_loop().time()) > 0
        ):
            await asyncio.sleep(min(delay, 0.25))  # meanwhile requests may become pointless


class Hosts:
    """Rate limiter for the requests to all hosts."""

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._hosts: dict[str, Host] = {}
        self._semaphore = asyncio.Semaphore(options.concurrency)
        self._interval = 1 / options.per_host_rate if options.per_host_rate else 0.0

    @asynccontextmanager
    async def request_slot(self, name: str) -> AsyncIterator[Host]:
        """Wait until a request to a host may start. The slot is held for the `with` block; first come, first served."""
        host = self._hosts.get(name) or self._add(name)
        host.users += 1
        try:
            async with host.semaphore:
                # One at a time, so that requests that waited for the total limit keep the interval too.
                async with host.start_lock:
                    await host.wait()
                    await self._semaphore.acquire()
                    if not host.refusal:
                        host.pause(self._interval)
                try:
                    yield host
                finally:
                    self._semaphore.release()
        finally:
            host.users -= 1

    def _add(self, name: str) -> Host:
        if len(self._hosts) >= _MAX_HOSTS:
            now = asyncio.get_running_loop().time()
            self._hosts = {
                key: host
                for key, host in self._hosts.items()
                if host.users or host.next_start > now or host.is_down or host.refusal
            }
        self._hosts[name] = Host(self._options.per_host)
        return self._hosts[name]
