"""The claim: in the same minutes and with a model of the same size, lakeclip learns at least as much as open_clip: by
zero-shot top-1 on CIFAR-10's captioned photos, and by retrieval (R@10) on Flickr8k's photos and captions.

    .venv-peer/bin/python benchmarks/quality.py --cifar10 DIR --flickr8k DIR --out benchmarks/results/NAME.json

Each DIR holds WebDataset shards: train-*.tar with KEY.jpg and KEY.txt; CIFAR-10's also test-*.tar with KEY.jpg and
KEY.json ("label"), Flickr8k's dev-*.tar with KEY.jpg and KEY.txt. The two sides never run at once, and are scored at
several moments of their runs, after the clock. README.md beside this file says what is the same and why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import SIDES, Contest, Recipe, Run, add_flags, command, find_tars, say, today
from exam import Exam, RetrievalExam, ZeroShotExam
from machine import machine

#: Share of the minutes that is planned for, as rates vary.
_MARGIN = 0.97
#: Seconds of the run that the rate is measured on.
_CALIBRATION = 30.0


@dataclass(frozen=True)
class Setting:
    """What is trained on a data set, and how it is scored.

    Attributes:
        held_out: shards with the photos to score on, HELD_OUT-*.tar.
        score: name of the score that the claim is about.
    """

    model: str
    batch_size: int
    lr: float
    weight_decay: float
    min_area: float
    held_out: str
    exam: type[Exam]
    score: str


SETTINGS = {
    "cifar10": Setting("ViT-Ti/4-32px", 125, 1e-3, 0.1, 0.5, "test", ZeroShotExam, "top1"),
    "flickr8k": Setting("ViT-Ti/16-112px", 100, 1e-3, 0.2, 0.3, "dev", RetrievalExam, "R@10"),
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
        "holds": all(one["holds"] for one in results.values()),
        "date": today(),
        "command": command("quality.py"),
        "machine": machine(threads.pop()),
        "minutes": flags.minutes,
        "data": results,
    }
    _show(result)
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


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
    say(f"{name}: ingest")
    tars, held_out = find_tars(folder, "train"), find_tars(folder, setting.held_out)
    contest = Contest(work, tars, flags.model or setting.model, recipe, flags, points=flags.points)
    contest.ingest("held-out", [str(path) for path in held_out])
    exam = setting.exam(contest)

    say(f"{name}: calibration")
    rates = contest.measure(contest.pilot(), 0, _CALIBRATION)
    budget = flags.minutes * 60
    sides: dict[str, Any] = {}
    for side in SIDES:
        steps = rates[side].steps_within(budget * _MARGIN)
        say(f"{name}: {side}, {steps:,} steps in {flags.minutes:g} minutes")
        run = contest.train(side, steps, work / side)
        if run.seconds > budget:
            say(f"warning: {side} took {run.seconds - budget:.0f} s longer than planned")
        samples = run.steps * recipe.batch_size
        sides[side] = {
            "command": contest.shown(run.command),
            "samples_per_second": round(samples / (run.seconds - rates[side].start), 1),
            "calibration_samples_per_second": round(rates[side].steps_per_second * recipe.batch_size, 1),
            "start_seconds": round(rates[side].start, 1),
            "steps": run.steps,
            "epochs": round(samples / contest.rows, 2),
            "seconds": round(run.seconds, 1),
            "load_before": round(run.load, 2),
            "losses": _losses(run),
            "curve": run,
        }
    # Scoring is on no one's clock.
    for side, result in sides.items():
        say(f"{name}: scoring {side}")
        run = result["curve"]
        scores = exam.score(side, [one.path for one in run.snapshots])
        result["curve"] = _curve(run, scores, recipe.batch_size)
        result["scores"] = scores[-1]
    ours, theirs = (sides[side]["scores"][setting.score] for side in SIDES)
    return {
        "holds": ours >= theirs,
        "score": setting.score,
        **contest.facts(),
        "ingest_seconds": round(contest.ingest_seconds, 1),
        "scored_on": exam.describe(),
        **sides,
        "threads": contest.peer["threads"],
    }


def _losses(run: Run) -> dict[str, Any]:
    """The training loss over the run, at about sixty moments."""
    every = max(1, len(run.losses) // 60)
    rows = [[round(at, 1), seen, round(loss, 3)] for at, seen, loss in run.losses[::every]]
    return {"columns": ["seconds", "samples", "loss"], "rows": rows}


def _curve(run: Run, scores: list[dict[str, float]], batch_size: int) -> dict[str, Any]:
    """The scores over the run, each with the mean of the training losses since the one before."""
    rows = []
    before = 0
    for one, score in zip(run.snapshots, scores, strict=True):
        samples = one.step * batch_size
        losses = [loss for _, seen, loss in run.losses if before < seen <= samples]
        mean = round(sum(losses) / len(losses), 3) if losses else None
        rows.append([round(one.at, 1), samples, mean, *(round(value, 4) for value in score.values())])
        before = samples
    return {"columns": ["seconds", "samples", "loss", *scores[0]], "rows": rows}


def _show(result: dict[str, Any]) -> None:
    print(f"{result['date']}  {result['machine']['cpu']}, {result['machine']['cores']} cores, ", end="")
    print(f"{result['minutes']:g} minutes a side")
    for name, one in result["data"].items():
        print(f"\n{name}: {one['model']['name']}, {one['model']['parameters']:,} parameters\n")
        print(f"{'':22}{'lakeclip':>12}{'open_clip':>12}{'chance':>10}")
        for what, digits in (("samples_per_second", 0), ("steps", 0), ("epochs", 1), ("seconds", 0)):
            print(f"{what:22}" + "".join(f"{one[side][what]:12,.{digits}f}" for side in SIDES))
        for score, chance in one["scored_on"]["chance"].items():
            print(f"{score:22}" + "".join(f"{one[side]['scores'][score]:12.1%}" for side in SIDES) + f"{chance:10.1%}")
        for side in SIDES:
            curve = one[side]["curve"]
            column = curve["columns"].index(one["score"])
            print(f"{side}: " + ", ".join(f"{row[column]:.1%} after {row[0]:.0f} s" for row in curve["rows"]))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cifar10", metavar="DIR", help="folder with train-*.tar and test-*.tar")
    add("--flickr8k", metavar="DIR", help="folder with train-*.tar and dev-*.tar")
    add("--minutes", type=float, default=8.0, help="wall-clock time of each side's training process (8)")
    add("--points", type=int, default=5, help="moments of a run at which it is scored; the last is the end (5)")
    add("--model", help="a model of lakeclip's or of models.yaml; open_clip gets the same sizes")
    add("--batch-size", type=int, help="of both sides")
    add("--lr", type=float, help="peak learning rate of both sides")
    add("--weight-decay", type=float, help="of both sides")
    add("--min-area", type=float, help="smallest share of the photo that a random crop keeps, both sides")
    add_flags(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
