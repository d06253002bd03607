"""`lakeclip finetune`: two pretrained towers, brought together on one's own pairs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lakeclip.cli.plan import show_plan
from lakeclip.cli.train import mixed
from lakeclip.config.schema import FinetuneConfig


@dataclass(frozen=True)
class FinetuneFlags:
    """Bring two pretrained towers together on a lake or a folder of pairs."""

    dry_run: bool = False
    """Train nothing: try a few steps and print what the run would need, how long it takes, and what looks wrong."""
    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = field(default_factory=FinetuneConfig)


def run(argv: list[str]) -> None:
    """Parse the flags and train, or only plan."""
    flags = tyro.cli(FinetuneFlags, args=mixed(argv), prog="lakeclip finetune", config=(tyro.conf.OmitArgPrefixes,))
    if flags.dry_run:
        show_plan(flags.config)
    else:
        finetune(flags.config)


def finetune(config: FinetuneConfig) -> None:
    """Fine-tune and tell the user what came out."""
    from lakeclip.training.run import finetune as finetune_run

    finished = finetune_run(config, token=os.environ.get("ACTIVELOOP_TOKEN"))
    if finished.is_main:
        if finished.speed is not None:
            sys.stdout.write(f"{finished.speed}\n")
        sys.stdout.write(f"trained {finished.steps} steps in {finished.seconds:.0f} s: {finished.folder}\n")
    if finished.interrupted:
        sys.exit(130)
