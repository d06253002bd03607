"""Memory limit for downloads. The download that is consumed next always gets memory, so that there is no deadlock."""

from __future__ import annotations

import asyncio
import heapq


class MemoryBudget:
    """Memory budget shared by downloads that are consumed in the order of their numbers.

    The first download that has not been consumed gets the memory that it requests even if the budget is exhausted: the
    others hold theirs until it has been consumed. The total is therefore at most `limit` plus one download.

    Args:
        limit: budget in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._first = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    async def acquire(self, number: int, count: int) -> None:
        """Wait until `count` bytes are free and take them; downloads with lower numbers come first."""
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

    def release(self, count: int) -> None:
        """Release `count` bytes."""
        self._free += count
        self._serve()

    def consume(self, number: int, count: int) -> None:
        """Release the bytes of the first download, after it has been consumed."""
        self._first = number + 1
        self.release(count)

    def _serve(self) -> None:
        while self._waiting:
            number, count, served = self._waiting[0]
            if served.cancelled():  # it is about to remove itself
                return
            if count > self._free and number != self._first:
                return
            heapq.heappop(self._waiting)
            self._free -= count
            served.set_result(None)


class Reservation:
    """Memory of one download.

    Args:
        budget: the budget that provides the memory.
        number: position of the download in the order.

    Attributes:
        held: bytes that the download holds.
        requested: bytes that it waits for; not more than `held` if it is not waiting.
    """

    def __init__(self, budget: MemoryBudget, number: int) -> None:
        self._budget = budget
        self._number = number
        self.held = 0
        self.requested = 0

    async def grow(self, count: int) -> None:
        """Wait until the download holds `count` bytes."""
        if count > self.held:
            self.requested = count
            await self._budget.acquire(self._number, count - self.held)
            self.held = count

    def shrink(self, count: int) -> None:
        """Release all but `count` bytes."""
        self._budget.release(self.held - count)
        self.held = self.requested = count
