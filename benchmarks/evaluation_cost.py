"""The claim: by default, evaluation during training costs under 3% of the run: validation after each epoch, and
zero-shot scores of another lake on the schedule that the run chooses itself.

    python benchmarks/evaluation_cost.py --cifar10 DIR --epochs 6 --out benchmarks/results/NAME.json

DIR holds WebDataset shards: train-*.tar with KEY.jpg and KEY.txt, test-*.tar with KEY.jpg and KEY.json ("label"). Two
runs of the same steps in turns: with everything that is the default and scores, and with neither. The share is told by
the run's own clock, and, less exactly on a machine that does other things too, by how much longer the first takes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contest import command, find_tars, say, today
from machine import machine

from lakeclip.config.schema import DataConfig, EvaluationConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.lake.ingest import ingest
from lakeclip.training.run import FinishedRun, train

_MOST = 0.03


def main() -> None:
    """Parse the flags, run both, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as work:
        result = compare(flags, Path(work))
    if flags.out:
        Path(flags.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for one in result["rounds"]:
        print(
            f"{one['steps']} steps: {one['seconds']:.0f} s with evaluation, {one['seconds_without']:.0f} s without; "
            f"{one['share']:.2%} of the time by the run's clock; scores at steps {one['scored_at']}"
        )
    print("holds" if result["holds"] else "does not hold")


def compare(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make the lakes, and train in turns."""
    for kind in ("train", "test"):
        ingest([str(path) for path in find_tars(flags.cifar10, kind)], str(work / kind))
    config = TrainConfig(
        model=flags.model,
        data=DataConfig(lake=str(work / "train"), batch_size=flags.batch_size, num_workers=1),
        optimizer=OptimizerConfig(lr=1e-3),
        trainer=TrainerConfig(
            max_epochs=flags.epochs, max_steps=flags.steps, precision="bf16", accelerator="cpu", runs=str(work / "runs")
        ),
        evaluation=EvaluationConfig(eval_lake=str(work / "test"), eval_label_column="label", eval_templates="cifar"),
    )
    rounds = []
    for number in range(flags.rounds):
        say(f"round {number + 1}: with evaluation")
        run = _train(config, f"with-{number}")
        bare = replace(config, data=replace(config.data, val_fraction=0.0), evaluation=EvaluationConfig())
        # Without rows held out an epoch is longer; the steps are the same.
        bare = replace(bare, trainer=replace(bare.trainer, max_epochs=flags.epochs + 1, max_steps=run.steps))
        say(f"round {number + 1}: without")
        without = _train(bare, f"without-{number}")
        rounds.append(
            {
                "steps": run.steps,
                "seconds": round(run.seconds, 1),
                "seconds_without": round(without.seconds, 1),
                "share": round(run.evaluation, 5),
                "scored_at": _scored(run),
                "zeroshot_top1": round(run.scores.get("zeroshot_top1", 0.0), 4),
            }
        )
    return {
        "claim": "by default, evaluation during training costs under 3% of the run",
        "holds": max(one["share"] for one in rounds) < _MOST,
        "date": today(),
        "command": command("evaluation_cost.py"),
        "machine": machine(torch.get_num_threads()),
        "model": flags.model,
        "batch_size": flags.batch_size,
        "rounds": rounds,
    }


def _train(config: TrainConfig, name: str) -> FinishedRun:
    return train(replace(config, trainer=replace(config.trainer, name=name)))


def _scored(run: FinishedRun) -> list[int]:
    """Steps after which the model was scored."""
    with (run.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [int(row["step"]) + 1 for row in csv.DictReader(file) if row.get("eval/zeroshot_top1")]


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cifar10", required=True, metavar="DIR", help="folder with train-*.tar and test-*.tar")
    add("--model", default="ViT-Ti/4-32px", help="what is trained (ViT-Ti/4-32px)")
    add("--batch-size", type=int, default=128, help="pairs a step (128)")
    add("--epochs", type=int, default=6, help="of each run (6)")
    add("--steps", type=int, help="end after so many steps, to see that it runs")
    add("--rounds", type=int, default=1, help="times that both are run (1)")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
