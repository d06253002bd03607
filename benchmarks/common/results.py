"""Reporting of a benchmark: progress, ratios, the command without local paths, and the JSON file of the result."""

from __future__ import annotations

import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Flag → what a result shows instead of its value, which is a path on this machine.
_PLACEHOLDERS = {
    **dict.fromkeys(("--out", "--captions", "--resnet20", "--peer-python"), "FILE"),
    **dict.fromkeys(("--data", "--cifar10", "--flickr8k", "--minilm", "--lake", "--work"), "DIR"),
    **dict.fromkeys(("--checkpoint", "--flickr8k-checkpoint"), "RUN"),
}


def log(text: str) -> None:
    """Print a progress message with the time to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def today() -> str:
    """Return the date (UTC) as results record it."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def command_line(script: str, placeholders: Mapping[str, str] | None = None) -> str:
    """Return the command that started this process, without paths on this machine.

    Args:
        placeholders: flag → text to show instead of its value, in addition to the flags that all benchmarks share.
    """
    hidden = {**_PLACEHOLDERS, **(placeholders or {})}
    arguments = sys.argv[1:]
    shown = [hidden.get(flag, value) for flag, value in zip(["", *arguments], arguments, strict=False)]
    runner = [] if script.endswith(".sh") else ["python"]
    return shlex.join([*runner, f"benchmarks/{script}", *shown])


def ratio_stats(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of the ratios, round by round.

    Other work on the machine slows both sides of a round about equally, so ratios per round vary less than the rates.
    """
    ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def write_result(result: Mapping[str, Any], path: str | None) -> None:
    """Write a result as JSON; do nothing without a path."""
    if path:
        Path(path).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
