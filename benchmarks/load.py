"""Claim: an epoch over a million pairs ends as it started. After its first twentieth, memory and the number of open
files do not grow, and the last tenth is as fast as the first.

    .venv/bin/python benchmarks/load.py --photos SOURCE --lake DIR --make
    .venv/bin/python benchmarks/load.py --lake DIR --out benchmarks/results/NAME.json

SOURCE is anything that `lakeclip ingest` accepts; without --photos, scenes are synthetic. The script samples `lakeclip
train` from outside: a very small model with its loading processes, validations, checkpoints and curves.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from common.machine import LoadTimer, machine
from common.process_memory import ProcessUsage, process_tree, process_usage
from common.results import command_line, log, today, write_result

_MODEL = "ViT-Pico/8-32px"
#: Parts of the epoch. Each ends with a validation and a checkpoint, so all parts have the same work.
_PARTS = 20
#: Growth of memory that the claim allows.
_MAX_GROWTH = 0.05
_MIN_RATE_RATIO = 0.95


class Sample(NamedTuple):
    """Memory and handles of the run at one moment.

    Attributes:
        step: steps done.
        main: usage of the training process.
        loaders: total usage of its children: the loaders and the server that forks them.
        num_loaders: number of children.
    """

    step: int
    main: ProcessUsage
    loaders: ProcessUsage
    num_loaders: int


def main() -> None:
    """Parse the flags; write the lake if it does not exist, train on it, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory(dir=flags.work) as temporary:
        lake = Path(flags.lake or Path(temporary) / "lake")
        if not lake.exists():
            write_lake(Path(flags.photos) if flags.photos else None, flags.rows, lake)
        if flags.make:
            return
        result = measure(lake, Path(temporary), flags)
    write_result(result, flags.out)
    show(result)
    sys.exit(0 if result["holds"] else 1)


def write_lake(photos: Path | None, num_rows: int, lake: Path) -> None:
    """Write the lake in this process; the training runs in another one."""
    from common.photo_crops import make_lake

    log(f"writing a lake of {num_rows:,} small photos")
    report = make_lake(photos, num_rows, lake)
    log(f"{report.rows:,} rows in {report.seconds:.0f} s")


def measure(lake: Path, work: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Train one epoch over the lake and sample its processes."""
    from lakeclip.lake.dataset import open_lake

    rows = len(open_lake(lake))
    steps = int(rows * (1 - flags.val_fraction)) // flags.batch_size
    settings = {
        "model": _MODEL,
        "model-config": str(Path(__file__).with_name("models.yaml")),
        "lake": str(lake),
        "batch-size": flags.batch_size,
        "num-workers": flags.workers,
        "val-fraction": flags.val_fraction,
        "max-epochs": 1,
        "val-every-steps": max(1, steps // _PARTS),
        "runs": str(work),
        "name": "run",
    }
    arguments = ["train", *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]
    log(f"one epoch over {rows:,} rows, about {steps:,} steps")
    with LoadTimer() as timer:
        command = [sys.executable, "-m", "lakeclip", *arguments]
        samples = train_and_sample(command, work / "run" / "metrics.csv", flags.every)
    curve = _curve(work / "run" / "metrics.csv")
    figures = check_claim(samples, curve, flags.batch_size)
    placeholders = {"lake": "DIR", "runs": "DIR", "model-config": "benchmarks/models.yaml"}
    return {
        "claim": "after an epoch's first twentieth neither memory nor open files grow; the end is as fast as the start",
        **figures,
        "date": today(),
        "command": command_line("load.py", {"--photos": "SOURCE"}),
        "trained": "lakeclip train "
        + " ".join(f"--{name} {placeholders.get(name, value)}" for name, value in settings.items()),
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "lightning", "deeplake", "simplejpeg")},
        "lake": describe(lake),
        "steps": curve[-1].step,
        "seconds": round(timer.seconds, 1),
        "cores_of_others": round(timer.others, 2),
    }


def describe(lake: Path) -> dict[str, Any]:
    """Return the number of rows and different images, and the size of a lake."""
    import numpy as np

    from lakeclip.lake.engine import deeplake

    dataset = deeplake().open_read_only(str(lake))
    size = sum(file.stat().st_size for file in lake.rglob("*") if file.is_file())
    return {
        "rows": len(dataset),
        "different_images": int(np.unique(np.asarray(dataset["crc32"][:])).size),
        "bytes_a_row": round(size / len(dataset)),
        "mb": round(size / 1e6),
    }


# ── sampling ────────────────────────────────────────────────────────────────────────────────────────────────────────


def train_and_sample(command: Sequence[str], metrics: Path, every: float) -> list[Sample]:
    """Run a training and sample its processes at this interval in seconds, from its first logged step to its last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    samples: list[Sample] = []
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            step = _last_step(metrics)
            usage = process_usage(process.pid)
            children = [pid for pid in process_tree(process.pid) if pid != process.pid]
            child_usages = [child for pid in children if (child := process_usage(pid))]
            if step and usage:
                total = ProcessUsage()
                for child in child_usages:
                    total = total.plus(child)
                samples.append(Sample(step, usage, total, len(child_usages)))
            time.sleep(every)
        output.seek(0)
        if process.returncode:
            sys.exit(f"the training failed:\n{output.read()}")
    return samples


def _last_step(metrics: Path) -> int:
    """Return the steps done according to the last complete line of the curves; 0 if there is none yet."""
    try:
        with metrics.open("rb") as file:
            names = file.readline().decode().strip().split(",")
            file.seek(max(0, metrics.stat().st_size - 4096))
            lines = file.read().decode().splitlines()
    except OSError:
        return 0
    cells = lines[-1].split(",") if lines else []
    column = names.index("step") if "step" in names else -1
    return int(cells[column]) + 1 if len(cells) == len(names) and cells[column].isdigit() else 0


class Point(NamedTuple):
    """Point of the curves: steps done, and seconds since the start of the run."""

    step: int
    seconds: float


def _curve(metrics: Path) -> list[Point]:
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/seconds")]
    return [Point(int(row["step"]) + 1, float(row["train/seconds"])) for row in rows]


# ── three criteria ──────────────────────────────────────────────────────────────────────────────────────────────────


def check_claim(samples: Sequence[Sample], curve: Sequence[Point], batch_size: int) -> dict[str, Any]:
    """Return the usage in each part of the epoch, and whether the claim holds.

    Each part counts with its maximum. Later parts are compared with the second one: it is the first that starts after a
    validation and a checkpoint, like all later ones.

    Raises:
        SystemExit: the run was too short to have samples in two parts after the first.
    """
    steps = curve[-1].step
    # After loaders have ended, pages shared with them count for their parent alone, which is no growth.
    # The count is usual after the first part, in which loaders start, and before the last step, after which they end.
    middle = [sample.num_loaders for sample in samples if sample.step * _PARTS > steps and sample.step < steps]
    usual = statistics.mode(middle) if middle else 0
    comparable = [sample for sample in samples if sample.num_loaders == usual or sample.step * _PARTS <= steps]
    parts: list[dict[str, Any]] = []
    for part in range(_PARTS):
        within = [sample for sample in comparable if part * steps < sample.step * _PARTS <= (part + 1) * steps]
        if within:
            parts.append({"part": part + 1, **_maxima(within)})
    later = [part for part in parts if part["part"] > 1]
    if len(later) < 2:
        sys.exit(
            f"error: only {len(later)} of {_PARTS - 1} later parts have samples: the run was too short; "
            "reduce --every or use a larger lake"
        )
    growth = {
        name: round(max(part[name] for part in later) / later[0][name] - 1, 4)
        for name in ("rss", "pss", "uss", "anonymous", "rss_main", "rss_loaders")
    }
    # The number of handles varies with the batches in flight, but a leak raises its minimum.
    half = len(later) // 2
    minima = [part["handles_least"] for part in later]
    handles = min(minima[-half:]) - min(minima[:half])
    rates = list(_rates(curve, batch_size))
    ratio = rates[-1] / rates[0]
    flat, closed, steady = growth["rss"] <= _MAX_GROWTH, handles <= 0, ratio >= _MIN_RATE_RATIO
    return {
        "holds": flat and closed and steady,
        "memory_is_flat": flat,
        "handles_do_not_grow": closed,
        "speed_is_kept": steady,
        "growth": growth,
        "handles_grown": handles,
        "last_tenth_of_first": round(ratio, 3),
        "pairs_per_second_by_tenth": [round(rate) for rate in rates],
        "most_by_twentieth": parts,
    }


def _maxima(samples: Sequence[Sample]) -> dict[str, Any]:
    totals = [sample.main.plus(sample.loaders) for sample in samples]
    return {
        "looks": len(samples),
        "loaders": max(sample.num_loaders for sample in samples),
        **{name: round(max(getattr(total, name) for total in totals), 1) for name in ProcessUsage._fields},
        "rss_main": round(max(sample.main.rss for sample in samples), 1),
        "rss_loaders": round(max(sample.loaders.rss for sample in samples), 1),
        "rss_median": round(statistics.median(total.rss for total in totals), 1),
        "handles_main": max(sample.main.handles for sample in samples),
        "handles_least": min(total.handles for total in totals),
    }


def _rates(curve: Sequence[Point], batch_size: int) -> Iterator[float]:
    """Yield the pairs a second of each tenth, with validations and checkpoints; the first starts at the first point."""
    first, last = curve[0], curve[-1]
    seconds_at = _interpolate(curve)
    marks = [first.step, *(last.step * tenth // 10 for tenth in range(1, 11))]
    for begin, end in pairwise(marks):
        yield (end - begin) * batch_size / (seconds_at(end) - seconds_at(begin))


def _interpolate(curve: Sequence[Point]) -> Callable[[int], float]:
    """Return a function from steps to seconds since the run's start."""
    import numpy as np

    steps, seconds = zip(*curve, strict=True)
    return lambda step: float(np.interp(step, steps, seconds))


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['cores']} cores, {result['lake']}\n")
    print(f"{'part':>5}{'RSS':>9}{'median':>9}{'PSS':>9}{'USS':>9}{'anonymous':>11}{'handles':>9}{'loaders':>9}")
    for part in result["most_by_twentieth"]:
        cells = "".join(f"{part[name]:9.0f}" for name in ("rss", "rss_median", "pss", "uss"))
        print(f"{part['part']:>5}{cells}{part['anonymous']:11.0f}{part['handles']:9}{part['loaders']:9}")
    print("pairs/s by tenth: " + " ".join(f"{rate:,}" for rate in result["pairs_per_second_by_tenth"]))
    growth = ", ".join(f"{name} {value:+.1%}" for name, value in result["growth"].items())
    print(f"memory grew by {growth}: {_verdict(result['memory_is_flat'])}")
    print(f"handles grew by {result['handles_grown']}: {_verdict(result['handles_do_not_grow'])}")
    print(f"last tenth of first: {result['last_tenth_of_first']:.3f}: {_verdict(result['speed_is_kept'])}")


def _verdict(holds: bool) -> str:
    return "holds" if holds else "DOES NOT HOLD"


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--photos", metavar="SOURCE", help="folder, tars or lake to cut small photos from; synthetic scenes by default")
    add("--rows", type=int, default=1_000_000, help="rows of the lake to write (1,000,000)")
    add("--lake", metavar="DIR", help="the lake, written if it does not exist; temporary by default")
    add("--make", action="store_true", help="only write the lake")
    add("--batch-size", type=int, default=250, help="pairs per step (250)")
    add("--workers", type=int, default=2, help="loading processes (2)")
    add("--val-fraction", type=float, default=0.005, help="share of rows to validate on (0.005)")
    add("--every", type=float, default=1.0, help="seconds between samples (1)")
    add("--work", metavar="DIR", help="folder for the run; temporary by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
