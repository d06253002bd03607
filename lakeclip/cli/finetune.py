"""`lakeclip finetune`: fine-tune two pretrained towers, or a whole CLIP."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lakeclip.cli.run_flags import run_verb
from lakeclip.config.schema import FinetuneConfig


@dataclass(frozen=True)
class FinetuneFlags:
    """Fine-tune two pretrained towers, or a whole CLIP (--from), on a lake or a folder of pairs.

    Settings come from the defaults, then the recipe, then the flags.
    """

    recipe: str | None = None
    """A YAML recipe, or the name of a shipped one (finetune-towers, finetune-otter, finetune-lit,
    finetune-clip)."""
    resume: str | None = None
    """Folder of a run to resume from its newest whole checkpoint, with its configuration; or auto, as for `train`."""
    repeat: str | None = None
    """A checkpoint, or a run's folder (its last): run it again, and say whether the weights are the same."""
    dry_run: bool = False
    """Train nothing: try a few steps and print what the run would need, how long it takes, and what looks wrong."""
    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = field(default_factory=FinetuneConfig)


def run(argv: list[str]) -> None:
    """Parse the flags, fine-tune, and say where the result is."""
    run_verb("finetune", FinetuneFlags, FinetuneConfig, argv, _finetune)


def _finetune(config: FinetuneConfig, resume: Path | None) -> None:
    from lakeclip.report.run import conclude
    from lakeclip.training.run import finetune

    conclude(finetune(config, resume=resume), "finetune")
