"""Description of the machine for a result, memory of the process, and load by other processes."""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from pathlib import Path
from typing import Any


def machine(threads: int) -> dict[str, Any]:
    """Describe CPU, cores, memory and system, without anything that identifies the machine.

    Args:
        threads: number that each side may use.
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
    """Return the peak resident memory of this process in MiB.

    `getrusage` would not do: its maximum survives an exec, so a child starts with its parent's peak.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class LoadTimer:
    """Context manager that times a block and measures how much of the machine other processes used meanwhile.

    Attributes:
        seconds: wall-clock time.
        others: mean number of cores busy with anything but this process and the children that ended within the block.
    """

    seconds: float
    others: float

    def __enter__(self) -> LoadTimer:
        self._start, self._machine_start, self._process_start = time.perf_counter(), _machine_time(), _process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
        others = _machine_time() - self._machine_start - (_process_time() - self._process_start)
        self.others = others / self.seconds


def _machine_time() -> float:
    """Return the seconds that all cores were busy since boot, including time stolen by other virtual machines."""
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, stolen = map(int, fields[:8])
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _process_time() -> float:
    """Return the CPU seconds of this process and its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
