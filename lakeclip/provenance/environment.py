"""Describe the code, libraries and machine of a run, as far as they affect its arithmetic.

Nothing identifies the user or the machine: no host name, user name, environment variable or path.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = (
    *("torch", "lightning", "deeplake", "numpy", "simplejpeg", "pillow", "tokenizers", "transformers"),
    *("timm", "torchvision", "torchao"),
)
_SOURCES = (".py", ".yaml", ".gz")
_GIT_SECONDS = 10


@cache
def code_version() -> dict[str, Any]:
    """Return the version of this process's code, as it was at the first call.

    Returns:
        `version` of lakeclip; `sources`, a sha256 over the package's files; and in a git checkout `commit` and
        `changed`, which is True if the package differs from the commit.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        # A wheel has the recipes inside the package, a checkout beside it.
        if path.suffix in _SOURCES and not name.startswith("recipes/"):
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    entries: dict[str, Any] = {"version": version("lakeclip"), "sources": digest.hexdigest()}
    if (package.parent / ".git").exists() and (commit := _git(package, "rev-parse", "HEAD")):
        entries |= {"commit": commit, "changed": bool(_git(package, "status", "--porcelain", "--", "."))}
    return entries


def describe_environment(device: torch.device | None = None, *, gpus: Sequence[int] | None = None) -> dict[str, Any]:
    """Describe the libraries, the processor or GPUs, and the settings that affect floating-point arithmetic.

    Args:
        device: device of the run; by default the one that this process would use.
        gpus: indices of the run's GPUs; by default all of the machine's.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entries: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: version for name in _LIBRARIES if (version := _version(name))},
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())).strip(),
        "cpu": _cpu(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type == "cuda":
        indices = range(torch.cuda.device_count()) if gpus is None else gpus
        entries |= {
            "gpus": [torch.cuda.get_device_name(index) for index in indices],
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return entries


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of git; empty if git is missing, fails or does not answer in time."""
    git = shutil.which("git")
    if git is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 – fixed arguments
            [git, "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
