"""The claim: whole training processes, lakeclip's from a lake and open_clip's from WebDataset shards of the same
photos, at the same batch size on the same cores: lakeclip takes 1.8 times as many samples a second.

    .venv-peer/bin/python benchmarks/end_to_end.py --flickr8k DIR --cifar10 DIR --out benchmarks/results/NAME.json

Each DIR holds WebDataset shards train-*.tar with KEY.jpg and KEY.txt; photos of Flickr8k are 224 pixels wide, those of
CIFAR-10 32. README.md beside this file says what is the same on both sides and what is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from contest import SIDES, Contest, Recipe, add_flags, command, find_tars, ratio, say, today
from machine import machine

#: Data set → model and batch size.
_SETTINGS = {"flickr8k": ("ViT-Ti/32", 100), "cifar10": ("ViT-Ti/4-32px", 125)}
_TARGET = 1.8


def main() -> None:
    """Parse the flags, measure, write and print the result."""
    flags = _flags()
    folders = {name: getattr(flags, name) for name in _SETTINGS if getattr(flags, name)}
    if not folders:
        sys.exit(f"error: name the data: {', '.join(f'--{name} DIR' for name in _SETTINGS)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(flags.work or temporary)
        results = {name: measure(name, folder, work / name, flags) for name, folder in folders.items()}
    threads = {result.pop("threads") for result in results.values()}
    result = {
        "claim": f"samples a second of whole training processes: at least {_TARGET} times open_clip's",
        "holds": all(one["ratio"]["median"] >= _TARGET for one in results.values()),
        "date": today(),
        "command": command("end_to_end.py"),
        "machine": machine(threads.pop()),
        "data": results,
    }
    _show(result)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(name: str, folder: str, work: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """All rounds on one data set."""
    model, batch_size = _SETTINGS[name]
    recipe = Recipe(
        batch_size=flags.batch_size or batch_size,
        lr=1e-3,
        weight_decay=0.1,
        min_area=0.5,
        precision=flags.precision,
        num_workers=flags.workers,
        seed=flags.seed,
    )
    say(f"{name}: ingest")
    contest = Contest(work, find_tars(folder, "train"), model, recipe, flags)
    say(f"{name}: a few steps of each side, which do not count")
    rough = contest.pilot()
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    starts: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(flags.rounds):
        for side, rate in contest.measure(rough, number, flags.seconds).items():
            rates[side].append(round(rate.steps_per_second * recipe.batch_size, 1))
            starts[side].append(round(rate.start, 1))
        say(f"{name}, round {number + 1}: " + ", ".join(f"{side} {rates[side][-1]:.0f} samples/s" for side in SIDES))
    return {
        **contest.facts(),
        "samples_per_second": rates,
        "start_seconds": starts,
        "ratio": ratio(rates["lakeclip"], rates["open_clip"]),
        "commands": {side: contest.shown(contest.words(side, 1, Path("RUN"))) for side in SIDES},
        "threads": contest.peer["threads"],
    }


def _show(result: dict[str, Any]) -> None:
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['cores']} cores\n")
    print(f"{'samples/s':12}{'model':16}{'lakeclip':>10}{'open_clip':>11}{'ratio':>8}   least to most of the rounds")
    for name, one in result["data"].items():
        ours, theirs = (statistics.median(one["samples_per_second"][side]) for side in SIDES)
        spread = one["ratio"]
        print(f"{name:12}{one['model']['name']:16}{ours:10.0f}{theirs:11.0f}{spread['median']:8.2f}", end="")
        print(f"   {spread['min']:.2f} to {spread['max']:.2f}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in _SETTINGS:
        parser.add_argument(f"--{name}", metavar="DIR", help="folder with train-*.tar")
    parser.add_argument("--rounds", type=int, default=3, help="times that both sides are measured (3)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="by which a long run is longer than a short one (30)"
    )
    parser.add_argument("--batch-size", type=int, help="of both sides (100 for Flickr8k, 125 for CIFAR-10)")
    add_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
