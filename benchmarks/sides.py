"""A side of a benchmark as a process of its own, and what is made of its figures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any


def run_side(script: str, words: list[str], *, side: str, threads: int) -> dict[str, Any]:
    """Run a script with these words; the last line that it prints is its JSON."""
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, env={**os.environ, **limits}
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def median_seconds(found: dict[str, Any]) -> float:
    """Of the steps of one measurement."""
    return statistics.median(found["seconds"])


def shown(words: list[str]) -> list[str]:
    """The command without this machine's folders."""
    hidden = {"--captions": "FILE", "--out": "FILE"}
    return [hidden.get(before, word) for before, word in zip(["", *words], words, strict=False)]
