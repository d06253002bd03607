"""What a run computes with: the code, the libraries and the machine, as far as its arithmetic hangs on them.

Nothing that names the user or the machine: no host name, no user name, no environment variable, no path.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch

import lakeclip

_LIBRARIES = (
    *("torch", "lightning", "deeplake", "numpy", "simplejpeg", "pillow", "tokenizers", "transformers"),
    *("timm", "torchvision", "torchao"),
)
_SOURCES = (".py", ".yaml", ".gz")
_GIT_SECONDS = 10


@cache
def code() -> dict[str, Any]:
    """The code of this process, as it was when this was first asked.

    Returns:
        version of lakeclip; sources, a sha256 over the package's files; and of a checkout of git its commit, and
        whether the package has been changed since.
    """
    package = Path(lakeclip.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        # A wheel holds the recipes inside the package, a checkout beside it.
        if path.suffix in _SOURCES and not name.startswith("recipes/"):
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    found: dict[str, Any] = {"version": version("lakeclip"), "sources": digest.hexdigest()}
    if (package.parent / ".git").exists() and (commit := _git(package, "rev-parse", "HEAD")):
        found |= {"commit": commit, "changed": bool(_git(package, "status", "--porcelain", "--", "."))}
    return found


def environment(trainer: L.Trainer | None = None) -> dict[str, Any]:
    """The libraries, the processor or GPUs, and the settings that decide how sums are made.

    Args:
        trainer: of a run; without one, what this process would have.
    """
    device = trainer.strategy.root_device if trainer else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {
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
        own = trainer.device_ids if trainer else range(torch.cuda.device_count())
        found |= {
            "gpus": [torch.cuda.get_device_name(number) for number in own],
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return found


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


def _git(folder: Path, *words: str) -> str:
    """What git says; nothing where there is none, or it does not answer."""
    git = shutil.which("git")
    if git is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 – fixed words
            [git, "-C", str(folder), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
