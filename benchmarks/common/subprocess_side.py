"""One side of a benchmark, run in a separate process so that memory and caches of the sides do not mix."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any


def run_side(script: str, arguments: list[str], *, side: str, threads: int | None = None) -> dict[str, Any]:
    """Run a script and return the JSON that it prints on its last line.

    Args:
        side: name for the error message.
        threads: number that OpenMP and MKL may use; by default their own choice.

    Raises:
        SystemExit: the script failed.
    """
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    finished = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, env={**os.environ, **limits}
    )
    if finished.returncode:
        sys.exit(f"{side} failed:\n{finished.stderr}")
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def median_seconds(measurement: dict[str, Any]) -> float:
    """Return the median seconds per step of one measurement."""
    return statistics.median(measurement["seconds"])
