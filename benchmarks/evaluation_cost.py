"""Claim: by default, evaluation during training takes less than 3% of the run: validation after each epoch, and
zero-shot scores on another lake on the schedule that the run chooses itself.

    python benchmarks/evaluation_cost.py --cifar10 DIR --epochs 6 --out benchmarks/results/NAME.json

DIR holds WebDataset shards: train-*.tar with KEY.jpg and KEY.txt, test-*.tar with KEY.jpg and KEY.json ("label"). Two
runs of the same steps alternate: one with the default validation and scores, one without either. The share is measured
by the run's own clock and, less exactly on a busy machine, by how much longer the first run takes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common.machine import machine
from common.results import command_line, log, today, write_result
from common.trainer_comparison import find_tars

from lakeclip.config.schema import DataConfig, EvaluationConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.ingestion.run import ingest
from lakeclip.training.run import TrainResult, train

_LIMIT = 0.03


def main() -> None:
    """Parse the flags, run with and without evaluation, write and print the result."""
    flags = _flags()
    with tempfile.TemporaryDirectory() as work:
        result = compare(flags, Path(work))
    write_result(result, flags.out)
    for row in result["rounds"]:
        print(
            f"{row['steps']} steps: {row['seconds']:.0f} s with evaluation, {row['seconds_without']:.0f} s without; "
            f"{row['share']:.2%} of the time by the run's clock; scored at steps {row['scored_at']}"
        )
    print("holds" if result["holds"] else "does not hold")


def compare(flags: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write the lakes, and train with and without evaluation in turns."""
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
        log(f"round {number + 1}: with evaluation")
        run = _train(config, f"with-{number}")
        without = replace(config, data=replace(config.data, val_fraction=0.0), evaluation=EvaluationConfig())
        # Without held-out rows an epoch is longer; the number of steps is the same.
        without = replace(without, trainer=replace(without.trainer, max_epochs=flags.epochs + 1, max_steps=run.steps))
        log(f"round {number + 1}: without evaluation")
        run_without = _train(without, f"without-{number}")
        rounds.append(
            {
                "steps": run.steps,
                "seconds": round(run.seconds, 1),
                "seconds_without": round(run_without.seconds, 1),
                "share": round(run.evaluation, 5),
                "scored_at": _scored(run),
                "zeroshot_top1": round(run.scores.get("zeroshot_top1", 0.0), 4),
            }
        )
    return {
        "claim": "by default, evaluation during training costs under 3% of the run",
        "holds": max(row["share"] for row in rounds) < _LIMIT,
        "date": today(),
        "command": command_line("evaluation_cost.py"),
        "machine": machine(torch.get_num_threads()),
        "model": flags.model,
        "batch_size": flags.batch_size,
        "rounds": rounds,
    }


def _train(config: TrainConfig, name: str) -> TrainResult:
    return train(replace(config, trainer=replace(config.trainer, name=name)))


def _scored(run: TrainResult) -> list[int]:
    """Return the steps after which the model was scored."""
    with (run.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [int(row["step"]) + 1 for row in csv.DictReader(file) if row.get("eval/zeroshot_top1")]


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cifar10", required=True, metavar="DIR", help="folder with train-*.tar and test-*.tar")
    add("--model", default="ViT-Ti/4-32px", help="model to train (ViT-Ti/4-32px)")
    add("--batch-size", type=int, default=128, help="pairs per step (128)")
    add("--epochs", type=int, default=6, help="epochs of each run (6)")
    add("--steps", type=int, help="stop after this many steps, for a quick trial")
    add("--rounds", type=int, default=1, help="number of measurements (1)")
    add("--out", metavar="FILE", help="write the result to this JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
