"""Memory and open file handles of a process and its children, read from Linux's /proc."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_KIB = re.compile(r"^(Rss|Pss|Private_Clean|Private_Dirty|Anonymous): +(\d+) kB", re.MULTILINE)


class ProcessUsage(NamedTuple):
    """Memory and handles of one or several processes.

    Attributes:
        rss: MiB of resident pages. Pages shared by several processes count for each of them, and pages of mapped files
            count too, though the system may drop them at any time.
        pss: the same with shared pages divided among the processes that share them, so that sums are exact.
        uss: MiB that belong to this process alone and would be free if it ended.
        anonymous: MiB that are backed by no file: memory that the program has allocated and not released.
        handles: open files, sockets, pipes and shared memory.
    """

    rss: float = 0.0
    pss: float = 0.0
    uss: float = 0.0
    anonymous: float = 0.0
    handles: int = 0

    def plus(self, other: ProcessUsage) -> ProcessUsage:
        """Return the sum of both."""
        return ProcessUsage(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def process_tree(pid: int) -> list[int]:
    """Return the ids of a process and all its running descendants, in ascending order."""
    pids = [pid]
    for member in pids:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                pids += map(int, children.read_text(encoding="ascii").split())
            except OSError:  # the process has just ended
                continue
    return sorted(pids)


def process_usage(pid: int) -> ProcessUsage | None:
    """Return the current memory and handles of a process; None if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        kib = {name: int(size) for name, size in _KIB.findall((folder / "smaps_rollup").read_text(encoding="ascii"))}
        handles = sum(1 for _ in (folder / "fd").iterdir())
    except OSError:
        return None
    if not kib:  # a zombie has no memory
        return None
    uss = kib["Private_Clean"] + kib["Private_Dirty"]
    return ProcessUsage(kib["Rss"] / 1024, kib["Pss"] / 1024, uss / 1024, kib["Anonymous"] / 1024, handles)
