"""`--repeat`: run a checkpoint's run again, and say whether it reaches the same weights."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lakeclip.config.load import Config
from lakeclip.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lakeclip.training.recovery.repeat import Past, Verdict


def start_of(path: str, kind: type[Config]) -> tuple[Config, Past]:
    """The configuration that the flags may change a little, and the run it is of.

    Raises:
        CheckpointError: the run cannot be repeated, or is another verb's.
    """
    from lakeclip.training.recovery.repeat import read_past

    past = read_past(path)
    if not isinstance(past.config, kind):
        verb = "finetune" if "teacher" in past.checkpoint.lineage["config"] else "train"
        raise CheckpointError(f"{path} is of another verb", next_step=f"lakeclip {verb} --repeat {path}")
    trainer = past.config.trainer
    name = f"{trainer.name}-repeat" if trainer.name else None
    return replace(past.config, trainer=replace(trainer, name=name)), past


def repeat(config: Config, past: Past) -> None:
    """Run it again and compare. Ends the process with code 1 where the weights are others.

    Raises:
        LakeclipError: as `train`; also where settings are asked for that make another run.
    """
    import torch

    from lakeclip.checkpoints.folder import LAST, MIXED
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.config.schema import TrainConfig
    from lakeclip.training.recovery.repeat import check_unchanged, compare
    from lakeclip.training.run import finetune, train

    check_unchanged(past, config)
    torch.set_num_threads(past.threads)
    token = os.environ.get("ACTIVELOOP_TOKEN")
    if isinstance(config, TrainConfig):
        finished = train(config, token=token, past=past)
    else:
        finished = finetune(config, token=token, past=past)
    if not finished.is_main:
        return
    if finished.steps < past.step:
        sys.stdout.write(f"stopped after step {finished.steps} of {past.step}: nothing is compared\n")
        sys.exit(130)
    reached = finished.folder / (MIXED if past.checkpoint.path.name == MIXED.name else LAST)
    verdict = compare(past, read_checkpoint(reached))
    sys.stdout.write(describe(verdict, past, finished.folder))
    if not verdict.is_identical:
        sys.exit(1)


def describe(verdict: Verdict, past: Past, folder: Path) -> str:
    """What is said of a repetition."""
    said = [f"repeated {past.step:,} steps of {past.checkpoint.path}: {folder}"]
    if verdict.is_identical:
        said.append(f"the weights are identical, bit for bit (sha256 {verdict.digest})")
    else:
        largest, name = verdict.largest
        said.append(
            f"the weights differ: {verdict.num_differing:,} of {verdict.num_weights:,} numbers, "
            f"at most by {largest:.3g} ({name})"
        )
    if verdict.differing:
        said.append("what is another now than then:")
        said += [f"  {name}: {then} → {now}" for name, (then, now) in verdict.differing.items()]
    elif not verdict.is_identical:
        said.append("code, libraries, machine and threads are the same; on a GPU, sums may be made in another order")
    return "\n".join(said) + "\n"


def refuse_together(flags: dict[str, object]) -> None:
    """Of `--repeat`, `--resume`, `--recipe` and `--dry-run` one only.

    Raises:
        ConfigError: several are given.
    """
    given = [name for name, value in flags.items() if value]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} are asked for", next_step="--repeat alone: the checkpoint brings its settings"
        )
