"""Claim: over whole training processes, lakeclip from a lake processes at least 1.8 times as many samples a second as
open_clip from WebDataset shards of the same photos, at the same batch size and on the same cores.

    .venv-peer/bin/python benchmarks/end_to_end.py --flickr8k DIR --cifar10 DIR --out benchmarks/results/NAME.json

Each DIR holds WebDataset shards train-*.tar with KEY.jpg and KEY.txt; Flickr8k's photos are 224 pixels wide, CIFAR-10's
32. README.md in this folder says what is the same on both sides and what is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.machine import machine
from common.results import command_line, log, ratio_stats, today, write_result
from common.trainer_comparison import SIDES, Recipe, TrainerComparison, add_flags, find_tars

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
        "holds": all(data_set["ratio"]["median"] >= _TARGET for data_set in results.values()),
        "date": today(),
        "command": command_line("end_to_end.py"),
        "machine": machine(threads.pop()),
        "data": results,
    }
    _show(result)
    write_result(result, flags.out)


def measure(name: str, folder: str, work: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds on one data set."""
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
    log(f"{name}: ingest")
    comparison = TrainerComparison(work, find_tars(folder, "train"), model, recipe, flags)
    log(f"{name}: pilot run of each side")
    rough = comparison.pilot()
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    starts: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(flags.rounds):
        for side, rate in comparison.measure(rough, number, flags.seconds).items():
            rates[side].append(round(rate.steps_per_second * recipe.batch_size, 1))
            starts[side].append(round(rate.start, 1))
        log(f"{name}, round {number + 1}: " + ", ".join(f"{side} {rates[side][-1]:.0f} samples/s" for side in SIDES))
    ratio = ratio_stats(rates["lakeclip"], rates["open_clip"])
    return {
        **comparison.describe(),
        "samples_per_second": rates,
        "start_seconds": starts,
        "ratio": {name: round(value, 3) for name, value in ratio.items()},
        "commands": {side: comparison.without_local_paths(comparison.command(side, 1, Path("RUN"))) for side in SIDES},
        "threads": comparison.peer["threads"],
    }


def _show(result: dict[str, Any]) -> None:
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['cores']} cores\n")
    print(f"{'samples/s':12}{'model':16}{'lakeclip':>10}{'open_clip':>11}{'ratio':>8}   range over the rounds")
    for name, data_set in result["data"].items():
        ours, theirs = (statistics.median(data_set["samples_per_second"][side]) for side in SIDES)
        ratio = data_set["ratio"]
        print(f"{name:12}{data_set['model']['name']:16}{ours:10.0f}{theirs:11.0f}{ratio['median']:8.2f}", end="")
        print(f"   {ratio['min']:.2f} to {ratio['max']:.2f}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in _SETTINGS:
        parser.add_argument(f"--{name}", metavar="DIR", help="folder with train-*.tar")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of both sides (3)")
    parser.add_argument("--seconds", type=float, default=30.0, help="difference between a long and a short run (30)")
    parser.add_argument("--batch-size", type=int, help="of both sides (100 for Flickr8k, 125 for CIFAR-10)")
    add_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
