"""`lakeclip finetune`: two pretrained towers, brought together on one's own pairs."""

from __future__ import annotations

import os
import sys

import tyro

from lakeclip.cli.train import mixed
from lakeclip.config.schema import FinetuneConfig


def run(argv: list[str]) -> None:
    """Parse the flags and train."""
    config = tyro.cli(FinetuneConfig, args=mixed(argv), prog="lakeclip finetune", config=(tyro.conf.OmitArgPrefixes,))
    finetune(config)


def finetune(config: FinetuneConfig) -> None:
    """Fine-tune and tell the user what came out."""
    from lakeclip.training.run import finetune as finetune_run

    finished = finetune_run(config, token=os.environ.get("ACTIVELOOP_TOKEN"))
    if finished.is_main:
        sys.stdout.write(f"trained {finished.steps} steps in {finished.seconds:.0f} s: {finished.folder}\n")
    if finished.interrupted:
        sys.exit(130)
