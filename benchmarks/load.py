"""The claim: an epoch over a million pairs ends as it began. After its first twentieth no more memory is taken and no
more files are open, and the last tenth is as fast as the first.

    .venv/bin/python benchmarks/load.py --photos SOURCE --lake DIR --make
    .venv/bin/python benchmarks/load.py --lake DIR --out benchmarks/results/NAME.json

SOURCE is what `lakeclip ingest` takes; without --photos, scenes are drawn. What is measured is `lakeclip train` with a
very small model, its loading processes, validations, checkpoints and curves, watched from outside.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shlex
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

from machine import Watch, machine
from processes import Held, family, held

_MODEL = "ViT-Pico/8-32px"
#: Parts of the epoch; each ends with a validation and a checkpoint, so that all parts have the same work.
_PARTS = 20
#: Growth that counts as none.
_GROWTH = 0.05
_LEAST_RATE = 0.95


class Sample(NamedTuple):
    """One look at the run.

    Attributes:
        step: how many steps were done.
        main: what the training process held.
        loaders: what its children held together.
        num_loaders: how many they were.
    """

    step: int
    main: Held
    loaders: Held
    num_loaders: int


def main() -> None:
    """Parse the flags; make the lake where there is none, train on it, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory(dir=flags.work) as temporary:
        lake = Path(flags.lake or Path(temporary) / "lake")
        if not lake.exists():
            make(Path(flags.photos) if flags.photos else None, flags.rows, lake)
        if flags.make:
            return
        result = measure(lake, Path(temporary), flags)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    sys.exit(0 if result["holds"] else 1)


def make(photos: Path | None, num_rows: int, lake: Path) -> None:
    """The lake, made in this process: the training is another."""
    from small_photos import make_lake

    _say(f"making a lake of {num_rows:,} small photos")
    report = make_lake(photos, num_rows, lake)
    _say(f"{report.rows:,} rows in {report.seconds:.0f} s")


def measure(lake: Path, work: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """One epoch over the lake, watched."""
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
    words = ["train", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
    _say(f"one epoch over {rows:,} rows, about {steps:,} steps")
    with Watch() as watch:
        samples = follow([sys.executable, "-m", "lakeclip", *words], work / "run" / "metrics.csv", flags.every)
    curve = _curve(work / "run" / "metrics.csv")
    figures = judge(samples, curve, flags.batch_size)
    shown = {"lake": "DIR", "runs": "DIR", "model-config": "benchmarks/models.yaml"}
    return {
        "claim": "after an epoch's first twentieth neither memory nor open files grow; the end is as fast as the start",
        **figures,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/load.py", *_shown(sys.argv[1:])]),
        "trained": "lakeclip train "
        + " ".join(f"--{name} {shown.get(name, value)}" for name, value in settings.items()),
        "machine": machine(1),
        "versions": {name: version(name) for name in ("torch", "lightning", "deeplake", "simplejpeg")},
        "lake": describe(lake),
        "steps": curve[-1].step,
        "seconds": round(watch.seconds, 1),
        "cores_of_others": round(watch.others, 2),
    }


def describe(lake: Path) -> dict[str, Any]:
    """How many rows, how large, how many different images."""
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


# ── watching ────────────────────────────────────────────────────────────────────────────────────────────────────────


def follow(command: Sequence[str], metrics: Path, every: float) -> list[Sample]:
    """Run a training and look at it every so many seconds, from its first logged step to its last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    samples: list[Sample] = []
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            step = _last_step(metrics)
            pids = family(process.pid)
            own, others = held(process.pid), [found for pid in pids if pid != process.pid and (found := held(pid))]
            if step and own:
                loaders = Held()
                for other in others:
                    loaders = loaders.plus(other)
                samples.append(Sample(step, own, loaders, len(others)))
            time.sleep(every)
        said.seek(0)
        if process.returncode:
            sys.exit(f"the training failed:\n{said.read()}")
    return samples


def _last_step(metrics: Path) -> int:
    """Steps done, by the last whole line of the curves; 0 where there are none yet."""
    try:
        with metrics.open("rb") as file:
            names = file.readline().decode().strip().split(",")
            file.seek(max(0, metrics.stat().st_size - 4096))
            lines = file.read().decode().splitlines()
    except OSError:
        return 0
    cells = lines[-1].split(",") if lines else []
    place = names.index("step") if "step" in names else -1
    return int(cells[place]) + 1 if len(cells) == len(names) and cells[place].isdigit() else 0


class Point(NamedTuple):
    """A point of the curves: steps done, seconds since the run began."""

    step: int
    seconds: float


def _curve(metrics: Path) -> list[Point]:
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/seconds")]
    return [Point(int(row["step"]) + 1, float(row["train/seconds"])) for row in rows]


# ── the three criteria ──────────────────────────────────────────────────────────────────────────────────────────────


def judge(samples: Sequence[Sample], curve: Sequence[Point], batch_size: int) -> dict[str, Any]:
    """What the parts of the epoch had, and whether the claim holds.

    Of each part counts the most that was seen in it. A later part is compared with the first that follows the first
    twentieth: that one has its validation and its checkpoint behind it, like all later ones.
    """
    steps = curve[-1].step
    # When loaders have ended, what they shared is their parent's alone: no growth.
    usual = statistics.mode(sample.num_loaders for sample in samples)
    whole = [sample for sample in samples if sample.num_loaders == usual or sample.step * _PARTS <= steps]
    parts: list[dict[str, Any]] = []
    for part in range(_PARTS):
        within = [sample for sample in whole if part * steps < sample.step * _PARTS <= (part + 1) * steps]
        if within:
            parts.append({"part": part + 1, **_most(within)})
    later = [part for part in parts if part["part"] > 1]
    if len(later) < 2:
        sys.exit("error: the run was too short to be looked at; make --every less or the lake larger")
    growth = {
        name: round(max(part[name] for part in later) / later[0][name] - 1, 4)
        for name in ("rss", "pss", "uss", "anonymous", "rss_main", "rss_loaders")
    }
    # Batches on their way hold some, now more and now fewer: a leak lifts the fewest.
    half = len(later) // 2
    fewest = [part["handles_least"] for part in later]
    handles = min(fewest[-half:]) - min(fewest[:half])
    rates = list(_rates(curve, batch_size))
    ratio = rates[-1] / rates[0]
    flat, closed, steady = growth["rss"] <= _GROWTH, handles <= 0, ratio >= _LEAST_RATE
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


def _most(samples: Sequence[Sample]) -> dict[str, Any]:
    both = [sample.main.plus(sample.loaders) for sample in samples]
    return {
        "looks": len(samples),
        "loaders": max(sample.num_loaders for sample in samples),
        **{name: round(max(getattr(one, name) for one in both), 1) for name in Held._fields},
        "rss_main": round(max(sample.main.rss for sample in samples), 1),
        "rss_loaders": round(max(sample.loaders.rss for sample in samples), 1),
        "rss_median": round(statistics.median(one.rss for one in both), 1),
        "handles_main": max(sample.main.handles for sample in samples),
        "handles_least": min(one.handles for one in both),
    }


def _rates(curve: Sequence[Point], batch_size: int) -> Iterator[float]:
    """Pairs a second of each tenth, validations and checkpoints included; the first begins with the first point."""
    first, last = curve[0], curve[-1]
    at = _between(curve)
    marks = [first.step, *(last.step * tenth // 10 for tenth in range(1, 11))]
    for begin, end in pairwise(marks):
        yield (end - begin) * batch_size / (at(end) - at(begin))


def _between(curve: Sequence[Point]) -> Callable[[int], float]:
    """The second at which a step was done."""
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
    grown = ", ".join(f"{name} {value:+.1%}" for name, value in result["growth"].items())
    print(f"memory grew by {grown}: {_verdict(result['memory_is_flat'])}")
    print(f"handles grew by {result['handles_grown']}: {_verdict(result['handles_do_not_grow'])}")
    print(f"last tenth of first: {result['last_tenth_of_first']:.3f}: {_verdict(result['speed_is_kept'])}")


def _verdict(holds: bool) -> str:
    return "holds" if holds else "DOES NOT HOLD"


def _shown(words: list[str]) -> list[str]:
    """The command without this machine's folders."""
    hidden = {"--photos": "SOURCE", "--lake": "DIR", "--work": "DIR", "--out": "FILE"}
    return [hidden.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--photos", metavar="SOURCE", help="folder, tars or lake to cut small photos from; scenes by default")
    add("--rows", type=int, default=1_000_000, help="of the lake to make (1,000,000)")
    add("--lake", metavar="DIR", help="the lake; made there if there is none; a temporary one by default")
    add("--make", action="store_true", help="make the lake and no more")
    add("--batch-size", type=int, default=250, help="pairs a step (250)")
    add("--workers", type=int, default=2, help="loading processes (2)")
    add("--val-fraction", type=float, default=0.005, help="share of the rows that is validated on (0.005)")
    add("--every", type=float, default=1.0, help="seconds from one look to the next (1)")
    add("--work", metavar="DIR", help="where the run is written; a temporary folder by default")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
