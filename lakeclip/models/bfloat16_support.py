"""Decide whether a device computes in bfloat16 at full speed, from its instructions or by a short measurement.

Without instructions for it, a processor computes bfloat16 matrix products in a slow reference loop (AVX2), or converts
to float32 and back (AVX-512). The decision is a pure function of the processor's flags or the GPU's generation, so that
it can be tested for any machine.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from lakeclip.errors import InputWarning

#: Instructions for bfloat16 matrix products: x86 (AVX-512, AMX, AVX10), ARM (NEON, SVE), and Apple's name of ARM's.
FAST_FLAGS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "svebf16", "feat_bf16")
#: Instructions that convert bfloat16: how much they help depends on the version of PyTorch.
_UNCLEAR_FLAGS = ("avx_ne_convert",)
#: Variables that keep oneDNN, PyTorch's library for CPUs, from using instructions that the processor has.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
#: The first generation of NVIDIA GPUs with bfloat16 is Ampere, compute capability 8.0.
_FIRST_CAPABILITY = (8, 0)
#: Side of the matrices that are measured, in both precisions.
_SIDE = 192


class Bfloat16Support(NamedTuple):
    """Speed of bfloat16 on a device.

    Attributes:
        is_fast: False if float32 is faster; None if the flags do not decide it.
        why: the reason, as part of a sentence.
    """

    is_fast: bool | None
    why: str


def cpu_support(flags: Collection[str]) -> Bfloat16Support:
    """Decide by a processor's flags, in lower case; empty if they are unknown."""
    if found := [flag for flag in FAST_FLAGS if flag in flags]:
        return Bfloat16Support(True, f"the processor has bfloat16 instructions ({found[0]})")
    if not flags or any(flag in flags for flag in _UNCLEAR_FLAGS):
        return Bfloat16Support(None, "the processor's flags do not tell whether it has bfloat16 instructions")
    if "avx512f" in flags:
        return Bfloat16Support(
            False,
            "the processor has AVX-512 without avx512_bf16, so PyTorch converts to float32 and back, "
            "which takes two to three times as long as float32",
        )
    if "avx2" in flags:
        return Bfloat16Support(
            False,
            "the processor has AVX2 but no bfloat16 instructions (avx512_bf16 or amx_bf16), "
            "and without them bfloat16 takes 50 to 130 times as long as float32",
        )
    return Bfloat16Support(False, "the processor has no bfloat16 instructions, and float32 is many times faster")


def gpu_support(capability: tuple[int, int] | None, name: str = "the GPU") -> Bfloat16Support:
    """Decide by an NVIDIA GPU's compute capability; None for a GPU of another kind (ROCm, MPS), which is not judged."""
    if capability is None:
        return Bfloat16Support(True, f"{name} computes in bfloat16")
    if capability >= _FIRST_CAPABILITY:
        return Bfloat16Support(True, f"{name} has bfloat16 instructions")
    major, minor = capability
    return Bfloat16Support(
        False,
        f"{name} (compute capability {major}.{minor}) has no bfloat16 instructions, which begin with 8.0, "
        "so PyTorch emulates it",
    )


def measured_support(ratio: float, why: str) -> Bfloat16Support:
    """Decide by the measured time of a bfloat16 matrix product, as a multiple of float32's."""
    if ratio <= 1.2:
        return Bfloat16Support(True, f"a measured bfloat16 product takes {ratio:.2g} times as long as float32's")
    return Bfloat16Support(
        False, f"{why}, and a measured bfloat16 product takes {ratio:.2g} times as long as float32's"
    )


@lru_cache(maxsize=4)
def bfloat16_support(device: str) -> Bfloat16Support:
    """Look up or measure this machine's support, once per process.

    Args:
        device: "cpu", "cuda", "cuda:1" or "mps".
    """
    if device.startswith("cuda"):
        is_nvidia = torch.version.hip is None
        capability = torch.cuda.get_device_capability(device) if is_nvidia else None
        return gpu_support(capability, torch.cuda.get_device_name(device))
    if device != "cpu":
        return gpu_support(None, f"the device {device}")
    support = cpu_support(cpu_flags())
    limit = next((name for name in _LIMITS if os.environ.get(name)), None)
    if limit and support.is_fast:
        support = Bfloat16Support(None, f"{limit}={os.environ[limit]} may switch the processor's instructions off")
    return support if support.is_fast is not None else measured_support(measure_ratio(), support.why)


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return this processor's flags in lower case; empty if the system does not list them."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        return parse_cpuinfo(info.read_text(encoding="utf-8", errors="replace"))
    if platform.system() == "Darwin":
        try:
            text = subprocess.run(
                ["/usr/sbin/sysctl", "hw.optional"], capture_output=True, text=True, timeout=5, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return frozenset()
        return parse_sysctl(text)
    return frozenset()


def parse_cpuinfo(text: str) -> frozenset[str]:
    """Return the flags of the first processor in /proc/cpuinfo, in Intel's or ARM's layout."""
    match = re.search(r"^(?:flags|features)\s*:\s*(.*)$", text, re.MULTILINE | re.IGNORECASE)
    return frozenset(match[1].lower().split()) if match else frozenset()


def parse_sysctl(text: str) -> frozenset[str]:
    """Return the features that macOS' `sysctl hw.optional` lists as present, without their prefixes."""
    present = re.findall(r"^hw\.optional\.(?:arm\.)?(\w+): 1$", text, re.MULTILINE)
    return frozenset(re.sub(r"^avx2_0$", "avx2", name.lower()) for name in present)


def measure_ratio() -> float:
    """Return the time of a bfloat16 matrix product on the CPU, as a multiple of float32's; some milliseconds."""
    with torch.no_grad():
        return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    first, second = (torch.ones(_SIDE, _SIDE).to(dtype) for _ in range(2))
    best = float("inf")
    # The first product compiles a kernel.
    for _ in range(4):
        started = time.perf_counter()
        first @ second
        best = min(best, time.perf_counter() - started)
    return best


def precision_warning(
    support: Bfloat16Support, use: str, flag: str, *, device: Literal["cpu", "gpu"]
) -> InputWarning | None:
    """Return a warning that bfloat16 is slow on a device; None if it is not.

    Args:
        use: the setting that asks for bfloat16, such as "--precision bf16".
        flag: the flag that computes in float32 instead.
    """
    if support.is_fast:
        return None
    # Older GPUs compute fast in float16; only training scales the loss for it.
    other = ", or --precision 16 for training" if device == "gpu" else ""
    return InputWarning(f"{use} is slow here: {support.why}", f"{flag}{other}")
