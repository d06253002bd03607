"""Claim: in the same minutes and with a model of the same size, lakeclip learns at least as much as open_clip:
zero-shot top-1 on CIFAR-10's captioned photos, and retrieval (R@10) on Flickr8k's photos and captions.

    .venv-peer/bin/python benchmarks/quality.py --cifar10 DIR --flickr8k DIR --out benchmarks/results/NAME.json

Each DIR holds WebDataset shards: train-*.tar with KEY.jpg and KEY.txt; CIFAR-10's also test-*.tar with KEY.jpg and
KEY.json ("label"), Flickr8k's dev-*.tar with KEY.jpg and KEY.txt. The two sides never run at the same time. Several
checkpoints of each are scored after the clock has stopped. README.md in this folder says what is the same and why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.machine import machine
from common.results import command_line, log, today, write_result
from common.scoring import RetrievalScorer, Scorer, ZeroShotScorer
from common.trainer_comparison import SIDES, Recipe, Run, TrainerComparison, add_flags, find_tars

#: Share of the minutes to plan for, since rates vary.
_MARGIN = 0.97
#: Length in seconds of the run that measures the rate.
_CALIBRATION = 30.0


@dataclass(frozen=True)
class Setting:
    """Model, recipe and scoring for a data set.

    Attributes:
        held_out: name of the shards to score on, HELD_OUT-*.tar.
        score: the score that the claim is about.
    """

    model: str
    batch_size: int
    lr: float
    weight_decay: float
    min_area: float
    held_out: str
    scorer: type[Scorer]
    score: str


SETTINGS = {
    "cifar10": Setting("ViT-Ti/4-32px", 125, 1e-3, 0.1, 0.5, "test", ZeroShotScorer, "top1"),
    "flickr8k": Setting("ViT-Ti/16-112px", 100, 1e-3, 0.2, 0.3, "dev", RetrievalScorer, "R@10"),
}


def main() -> None:
    """Parse the flags, run both sides on each data set, write and print the result."""
    flags = _flags()
    folders = {name: getattr(flags, name) for name in SETTINGS if getattr(flags, name)}
    if not folders:
        sys.exit(f"error: name the data: {', '.join(f'--{name} DIR' for name in SETTINGS)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(flags.work or temporary)
        results = {name: compare(name, folder, work / name, flags) for name, folder in folders.items()}
    threads = {result.pop("threads") for result in results.values()}
    result = {
        "claim": "after the same minutes lakeclip's score on unseen photos is at least open_clip's",
        "holds": all(data_set["holds"] for data_set in results.values()),
        "date": today(),
        "command": command_line("quality.py"),
        "machine": machine(threads.pop()),
        "minutes": flags.minutes,
        "data": results,
    }
    _show(result)
    write_result(result, flags.out)


def compare(name: str, folder: str, work: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Train both sides on one data set for the same minutes, and score them."""
    setting = SETTINGS[name]
    recipe = Recipe(
        batch_size=flags.batch_size or setting.batch_size,
        lr=flags.lr or setting.lr,
        weight_decay=setting.weight_decay if flags.weight_decay is None else flags.weight_decay,
        min_area=flags.min_area or setting.min_area,
        precision=flags.precision,
        num_workers=flags.workers,
        seed=flags.seed,
    )
    log(f"{name}: ingest")
    tars, held_out = find_tars(folder, "train"), find_tars(folder, setting.held_out)
    comparison = TrainerComparison(work, tars, flags.model or setting.model, recipe, flags, points=flags.points)
    comparison.ingest("held-out", [str(path) for path in held_out])
    scorer = setting.scorer(comparison)

    log(f"{name}: calibration")
    rates = comparison.measure(comparison.pilot(), 0, _CALIBRATION)
    budget = flags.minutes * 60
    sides: dict[str, Any] = {}
    for side in SIDES:
        steps = rates[side].steps_within(budget * _MARGIN)
        log(f"{name}: {side}, {steps:,} steps in {flags.minutes:g} minutes")
        run = comparison.train(side, steps, work / side)
        if run.seconds > budget:
            log(f"warning: {side} took {run.seconds - budget:.0f} s longer than planned")
        samples = run.steps * recipe.batch_size
        sides[side] = {
            "command": comparison.without_local_paths(run.command),
            "samples_per_second": round(samples / (run.seconds - rates[side].start), 1),
            "calibration_samples_per_second": round(rates[side].steps_per_second * recipe.batch_size, 1),
            "start_seconds": round(rates[side].start, 1),
            "steps": run.steps,
            "epochs": round(samples / comparison.rows, 2),
            "seconds": round(run.seconds, 1),
            "load_before": round(run.load, 2),
            "losses": _losses(run),
            "curve": run,
        }
    # Scoring does not count for either side.
    for side, result in sides.items():
        log(f"{name}: scoring {side}")
        run = result["curve"]
        scores = scorer.score(side, [snapshot.path for snapshot in run.snapshots])
        result["curve"] = _curve(run, scores, recipe.batch_size)
        result["scores"] = scores[-1]
    ours, theirs = (sides[side]["scores"][setting.score] for side in SIDES)
    return {
        "holds": ours >= theirs,
        "score": setting.score,
        **comparison.describe(),
        "ingest_seconds": round(comparison.ingest_seconds, 1),
        "scored_on": scorer.describe(),
        **sides,
        "threads": comparison.peer["threads"],
    }


def _losses(run: Run) -> dict[str, Any]:
    """Return about sixty training losses over the run."""
    every = max(1, len(run.losses) // 60)
    rows = [[round(seconds, 1), samples, round(loss, 3)] for seconds, samples, loss in run.losses[::every]]
    return {"columns": ["seconds", "samples", "loss"], "rows": rows}


def _curve(run: Run, scores: list[dict[str, float]], batch_size: int) -> dict[str, Any]:
    """Return the scores over the run, each with the mean training loss since the previous one."""
    rows = []
    previous = 0
    for snapshot, score in zip(run.snapshots, scores, strict=True):
        samples = snapshot.step * batch_size
        losses = [loss for _, seen, loss in run.losses if previous < seen <= samples]
        mean = round(sum(losses) / len(losses), 3) if losses else None
        rows.append([round(snapshot.seconds, 1), samples, mean, *(round(value, 4) for value in score.values())])
        previous = samples
    return {"columns": ["seconds", "samples", "loss", *scores[0]], "rows": rows}


def _show(result: dict[str, Any]) -> None:
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['cores']} cores, ", end="")
    print(f"{result['minutes']:g} minutes a side")
    for name, data_set in result["data"].items():
        print(f"\n{name}: {data_set['model']['name']}, {data_set['model']['parameters']:,} parameters\n")
        print(f"{'':22}{'lakeclip':>12}{'open_clip':>12}{'chance':>10}")
        for what, digits in (("samples_per_second", 0), ("steps", 0), ("epochs", 1), ("seconds", 0)):
            print(f"{what:22}" + "".join(f"{data_set[side][what]:12,.{digits}f}" for side in SIDES))
        for score, chance in data_set["scored_on"]["chance"].items():
            cells = "".join(f"{data_set[side]['scores'][score]:12.1%}" for side in SIDES)
            print(f"{score:22}{cells}{chance:10.1%}")
        for side in SIDES:
            curve = data_set[side]["curve"]
            column = curve["columns"].index(data_set["score"])
            print(f"{side}: " + ", ".join(f"{row[column]:.1%} after {row[0]:.0f} s" for row in curve["rows"]))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cifar10", metavar="DIR", help="folder with train-*.tar and test-*.tar")
    add("--flickr8k", metavar="DIR", help="folder with train-*.tar and dev-*.tar")
    add("--minutes", type=float, default=8.0, help="wall-clock time of each side's training process (8)")
    add("--points", type=int, default=5, help="checkpoints of a run to score; the last one is from the end (5)")
    add("--model", help="one of lakeclip's models or of models.yaml; open_clip gets the same sizes")
    add("--batch-size", type=int, help="pairs per step of both sides")
    add("--lr", type=float, help="peak learning rate of both sides")
    add("--weight-decay", type=float, help="weight decay of both sides")
    add("--min-area", type=float, help="smallest share of a photo's area that a random crop keeps, on both sides")
    add_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
