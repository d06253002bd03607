"""Memory in use by training: PyTorch's allocations on a GPU, or else the resident memory of this process."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

#: Linux's status files of this process, where the peak can also be reset (man 5 proc).
_PROCESS = Path("/proc/self")


def peak_memory(device: torch.device) -> int:
    """Return the peak so far in bytes: allocated on a GPU, or else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (largest if sys.platform == "darwin" else largest * 1024)


def resident_memory() -> int:
    """Return the present resident memory of this process in bytes; 0 if it is unknown (outside Linux)."""
    return _status("VmRSS")


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak that `peak_memory` returns to the present memory. Does nothing on a CPU outside Linux."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PROCESS.exists():
        with suppress(OSError, AttributeError):
            # Return freed memory to the system first; otherwise new allocations would reuse it and go unnoticed.
            ctypes.CDLL(None).malloc_trim(0)
            (_PROCESS / "clear_refs").write_text("5")


def _status(name: str) -> int:
    file = _PROCESS / "status"
    match = re.search(rf"{name}:\s*(\d+) kB", file.read_text()) if file.exists() else None
    return int(match[1]) * 1024 if match else 0
