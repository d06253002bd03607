"""Who may send a request when: a limit for all, limits for each host, and no more visits to a host that is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lakeclip.lake.download.options import DownloadOptions

#: A host that let this many requests in a row fail is down, and is not asked again for so many seconds. Without this,
#: a thousand addresses of one dead host would hold up everything for hours.
DOWN_AFTER = 12
DOWN_FOR = 600.0
#: Idle hosts are forgotten when there are more than this.
_REMEMBER = 10_000


class Host:
    """One host, by its name.

    Attributes:
        users: how many are at it, or wait to be.
    """

    def __init__(self, slots: int) -> None:
        self.users = 0
        self.slots = asyncio.Semaphore(slots)
        self.door = asyncio.Lock()
        self.opens = 0.0
        self._failures = 0
        self._down_until = 0.0

    @property
    def down(self) -> bool:
        """Whether there is no point in asking."""
        return asyncio.get_running_loop().time() < self._down_until

    def note(self, *, failed: bool) -> None:
        """Count a request that failed by the host's fault; any other ends the count."""
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= DOWN_AFTER:
            self._down_until = asyncio.get_running_loop().time() + DOWN_FOR

    def pause(self, seconds: float) -> None:
        """No one asks it anything for a while."""
        self.opens = max(self.opens, asyncio.get_running_loop().time() + seconds)

    async def wait(self) -> None:
        """Wait until it may be asked again."""
        while not self.down and (left := self.opens - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)


class Hosts:
    """Every host that is being asked."""

    def __init__(self, options: DownloadOptions) -> None:
        self._options = options
        self._hosts: dict[str, Host] = {}
        self._slots = asyncio.Semaphore(options.concurrency)
        self._gap = 1 / options.per_host_rate if options.per_host_rate else 0.0

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Host]:
        """Wait for a turn at a host; it lasts as long as the `with` block. The first to come is the first to go."""
        host = self._hosts.get(name) or self._add(name)
        host.users += 1
        try:
            async with host.slots:
                # One at a time: so the distance is kept also by those who waited for the common limit.
                async with host.door:
                    await host.wait()
                    await self._slots.acquire()
                    host.pause(self._gap)
                try:
                    yield host
                finally:
                    self._slots.release()
        finally:
            host.users -= 1

    def _add(self, name: str) -> Host:
        if len(self._hosts) >= _REMEMBER:
            now = asyncio.get_running_loop().time()
            self._hosts = {
                key: host for key, host in self._hosts.items() if host.users or host.opens > now or host.down
            }
        self._hosts[name] = Host(self._options.per_host)
        return self._hosts[name]
