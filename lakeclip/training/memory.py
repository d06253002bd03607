"""The memory that training holds: on a GPU what PyTorch has allocated, or else that of this process."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

#: Where Linux tells of this process, and lets it forget its peak (man 5 proc).
_PROCESS = Path("/proc/self")


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: allocated on a GPU, or else resident for this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (largest if sys.platform == "darwin" else largest * 1024)


def resident_memory() -> int:
    """Bytes of this process now; 0 where that cannot be known."""
    return _status("VmRSS")


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` begin anew, from what is held now; without Linux or a GPU it cannot."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PROCESS.exists():
        with suppress(OSError, AttributeError):
            # What was freed is given back first, or it would hide what is taken from now on.
            ctypes.CDLL(None).malloc_trim(0)
            (_PROCESS / "clear_refs").write_text("5")


def _status(name: str) -> int:
    file = _PROCESS / "status"
    found = re.search(rf"{name}:\s*(\d+) kB", file.read_text()) if file.exists() else None
    return int(found[1]) * 1024 if found else 0
