"""`lakeclip finetune`: two pretrained towers, or a whole CLIP, on one's own pairs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lakeclip.cli.plan import show_plan
from lakeclip.cli.repeat import refuse_together, repeat, start_of
from lakeclip.cli.train import conclude, flag_value, mixed, starting_point
from lakeclip.config.schema import FinetuneConfig
from lakeclip.errors import ConfigError


@dataclass(frozen=True)
class FinetuneFlags:
    """Bring two pretrained towers together on a lake or a folder of pairs, or go on with a whole CLIP (--from).

    Settings come from the defaults, then the recipe, then the flags.
    """

    recipe: str | None = None
    """A YAML recipe, or the name of a shipped one (finetune-towers, finetune-otter, finetune-lit,
    finetune-clip)."""
    resume: str | None = None
    """Folder of an earlier run: its configuration, and on from its newest whole checkpoint; or auto, as for `train`."""
    repeat: str | None = None
    """A checkpoint, or a run's folder (its last): run it again, and say whether the weights are the same."""
    dry_run: bool = False
    """Train nothing: try a few steps and print what the run would need, how long it takes, and what looks wrong."""
    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = field(default_factory=FinetuneConfig)


def run(argv: list[str]) -> None:
    """Parse the flags and train, or only plan."""
    argv = [_start(word) for word in mixed(argv)]
    if repeated := flag_value(argv, "--repeat"):
        start, past = start_of(repeated, FinetuneConfig)
        recipe = resume = None
    else:
        start, recipe, resume = starting_point(argv, FinetuneConfig)
    flags = tyro.cli(
        FinetuneFlags,
        args=argv,
        prog="lakeclip finetune",
        default=FinetuneFlags(recipe=recipe, resume=resume, repeat=repeated, config=start),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if repeated:
        others = {"--recipe": flags.recipe, "--resume": flags.resume, "--dry-run": flags.dry_run}
        refuse_together({"--repeat": repeated, **others})
        repeat(flags.config, past)
        return
    if flags.dry_run:
        if resume:
            raise ConfigError("a run to resume is planned already", next_step="--dry-run without --resume")
        show_plan(flags.config)
    else:
        finetune(flags.config, resume=Path(resume) if resume else None)


def finetune(config: FinetuneConfig, *, resume: Path | None = None) -> None:
    """Fine-tune, write the run's report, and tell the user what came out."""
    from lakeclip.training.run import finetune as finetune_run

    conclude(finetune_run(config, resume=resume, token=os.environ.get("ACTIVELOOP_TOKEN")), "finetune")


def _start(word: str) -> str:
    """`--from` is no name that a Python field can have."""
    flag, equals, value = word.partition("=")
    return f"--start{equals}{value}" if flag == "--from" else word
