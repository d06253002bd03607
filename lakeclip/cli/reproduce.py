"""`--repeat`: repeat a checkpoint's run, and report whether it reaches the same weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lakeclip.config.load import Config
from lakeclip.errors import CheckpointError

if TYPE_CHECKING:
    from lakeclip.training.reproduce import RecordedRun, WeightComparison


def load_repeated(path: str, config_type: type[Config]) -> tuple[Config, RecordedRun]:
    """Return the configuration of a run to repeat, and the run.

    Raises:
        CheckpointError: the run cannot be repeated, or belongs to another verb.
    """
    from lakeclip.training.reproduce import read_recorded_run

    past = read_recorded_run(path)
    if not isinstance(past.config, config_type):
        verb = "finetune" if "teacher" in past.checkpoint.lineage["config"] else "train"
        raise CheckpointError(
            f"{path} is a checkpoint of `lakeclip {verb}`", next_step=f"lakeclip {verb} --repeat {path}"
        )
    trainer = past.config.trainer
    name = f"{trainer.name}-repeat" if trainer.name else None
    return replace(past.config, trainer=replace(trainer, name=name)), past


def repeat(config: Config, past: RecordedRun) -> None:
    """Repeat the run and compare the weights. Exit with code 1 if they differ.

    Raises:
        LakeclipError: as for `train`, or the flags describe a different run.
    """
    import torch

    from lakeclip.checkpoints.folder import LAST, MIXED
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.config.schema import TrainConfig
    from lakeclip.training.reproduce import check_same_settings, compare_weights
    from lakeclip.training.run import finetune, train

    check_same_settings(past, config)
    torch.set_num_threads(past.threads)
    result = train(config, past=past) if isinstance(config, TrainConfig) else finetune(config, past=past)
    if not result.is_main:
        return
    if result.steps < past.step:
        sys.stdout.write(f"stopped after step {result.steps} of {past.step}: nothing was compared\n")
        sys.exit(130)
    reached = result.folder / (MIXED if past.checkpoint.path.name == MIXED.name else LAST)
    verdict = compare_weights(past, read_checkpoint(reached))
    sys.stdout.write(describe(verdict, past, result.folder))
    if not verdict.is_identical:
        sys.exit(1)


def describe(verdict: WeightComparison, past: RecordedRun, folder: Path) -> str:
    """Describe the outcome of a repetition for the terminal."""
    lines = [f"repeated {past.step:,} steps of {past.checkpoint.path}: {folder}"]
    if verdict.is_identical:
        lines.append(f"the weights are identical, bit for bit (sha256 {verdict.digest})")
    else:
        largest, name = verdict.largest
        lines.append(
            f"the weights differ: {verdict.num_differing:,} of {verdict.num_weights:,} numbers, "
            f"at most by {largest:.3g} ({name})"
        )
    if verdict.differing:
        lines.append("differences from the first run:")
        lines += [f"  {name}: {then} → {now}" for name, (then, now) in verdict.differing.items()]
    elif not verdict.is_identical:
        lines.append("code, libraries, machine and threads are the same; a GPU may sum in another order")
    return "\n".join(lines) + "\n"
