"""What a process and its children hold, as Linux tells it: memory in several senses, and open file handles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_KIB = re.compile(r"^(Rss|Pss|Private_Clean|Private_Dirty|Anonymous): +(\d+) kB", re.MULTILINE)


class Held(NamedTuple):
    """What one or several processes hold.

    Attributes:
        rss: MiB of resident pages. What several processes share counts for each of them, and pages of mapped files
            count too, though the system may drop them at any time.
        pss: the same with shared pages divided among those that share them: what all processes together really take.
        uss: MiB that nobody else has, and that would be free if the process ended.
        anonymous: MiB that are in no file: what a program has asked for and not given back.
        handles: open files, sockets and pipes, shared memory too.
    """

    rss: float = 0.0
    pss: float = 0.0
    uss: float = 0.0
    anonymous: float = 0.0
    handles: int = 0

    def plus(self, other: Held) -> Held:
        """Both together."""
        return Held(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def family(pid: int) -> list[int]:
    """A process and all that came from it, by age; those that have ended are left out."""
    found = [pid]
    for member in found:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                found += map(int, children.read_text(encoding="ascii").split())
            except OSError:  # it has just ended
                continue
    return sorted(found)


def held(pid: int) -> Held | None:
    """What a process holds now; None if it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        kib = {name: int(size) for name, size in _KIB.findall((folder / "smaps_rollup").read_text(encoding="ascii"))}
        handles = sum(1 for _ in (folder / "fd").iterdir())
    except OSError:
        return None
    if not kib:  # a zombie has no memory
        return None
    uss = kib["Private_Clean"] + kib["Private_Dirty"]
    return Held(kib["Rss"] / 1024, kib["Pss"] / 1024, uss / 1024, kib["Anonymous"] / 1024, handles)
