"""A bound on the bytes that downloads hold, which never keeps the one from going on that all others wait for."""

from __future__ import annotations

import asyncio
import heapq


class Memory:
    """Bytes to be shared out among downloads that are consumed in the order of their numbers.

    The first download not yet consumed gets what it asks for even if nothing is left: the others hold theirs until it
    has been consumed. So no more than `limit` and one download is ever held.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._first = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    async def take(self, number: int, count: int) -> None:
        """Wait until so many bytes are free; those with lower numbers come first."""
        entry = (number, count, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, entry)
        self._serve()
        try:
            await entry[2]
        except asyncio.CancelledError:
            if entry[2].cancelled():
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            else:
                self._free += count
            self._serve()
            raise

    def give(self, count: int) -> None:
        """Give back."""
        self._free += count
        self._serve()

    def consumed(self, number: int, count: int) -> None:
        """This download, the first one, is no longer held."""
        self._first = number + 1
        self.give(count)

    def _serve(self) -> None:
        while self._waiting:
            number, count, served = self._waiting[0]
            if served.cancelled():  # and about to remove itself
                return
            if count > self._free and number != self._first:
                return
            heapq.heappop(self._waiting)
            self._free -= count
            served.set_result(None)


class Claim:
    """What one download holds.

    Args:
        memory: of which.
        number: the download's place in the order.

    Attributes:
        held: bytes.
        wanted: bytes it is waiting for; not more than `held` if it is not waiting.
    """

    def __init__(self, memory: Memory, number: int) -> None:
        self._memory = memory
        self._number = number
        self.held = 0
        self.wanted = 0

    async def grow(self, count: int) -> None:
        """Wait until it holds so many bytes."""
        if count > self.held:
            self.wanted = count
            await self._memory.take(self._number, count - self.held)
            self.held = count

    def shrink(self, count: int) -> None:
        """Give back all but so many bytes."""
        self._memory.give(self.held - count)
        self.held = self.wanted = count
