"""What a result says of the machine it was measured on: enough to judge it, nothing that names it."""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from pathlib import Path
from typing import Any


def machine(threads: int) -> dict[str, Any]:
    """CPU, cores, memory and system.

    Args:
        threads: how many each side may use.
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    bf16 = []
    if info.exists():
        text = info.read_text(encoding="utf-8")
        cpu = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), cpu)
        bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "bfloat16": bf16,
        "cores": os.cpu_count(),
        "threads_per_side": threads,
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_mib() -> float:
    """The most memory that this process has had resident, in MiB.

    Not `getrusage`: its figure outlives an exec, so a child begins with what its parent had.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


class Watch:
    """How long a block took, and how much of the machine others had meanwhile.

    Attributes:
        seconds: wall-clock.
        others: cores, on the mean, that were busy with anything but this process and the children that ended within.
    """

    seconds: float
    others: float

    def __enter__(self) -> Watch:
        self._began, self._busy, self._own = time.perf_counter(), _busy(), _own()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self.others = (_busy() - self._busy - (_own() - self._own)) / self.seconds


def _busy() -> float:
    """Seconds that all cores together have been busy: for users, for the system, or for other machines on this one."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
