"""`lakeclip train`: train CLIP from scratch, or resume a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lakeclip.cli.run_flags import run_verb
from lakeclip.config.schema import TrainConfig


@dataclass(frozen=True)
class TrainFlags:
    """Train CLIP from scratch on a lake or a folder of pairs.

    Settings come from the defaults, then the recipe, then the flags. The token for a lake that needs one is read from
    the environment: ACTIVELOOP_TOKEN.
    """

    recipe: str | None = None
    """A YAML recipe, or the name of a shipped one (small, flickr, cc3m, cc12m, laion400m)."""
    resume: str | None = None
    """Folder of a run to resume from its newest whole checkpoint, with its configuration. Or auto: resume the run of
    --name if it exists, or else start it, so that one command does both."""
    repeat: str | None = None
    """A checkpoint, or a run's folder (its last): run it again, and say whether the weights are the same."""
    dry_run: bool = False
    """Train nothing: try a few steps and print what the run would need, how long it takes, and what looks wrong."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def run(argv: list[str]) -> None:
    """Parse the flags, train, and say where the result is."""
    run_verb("train", TrainFlags, TrainConfig, argv, _train)


def _train(config: TrainConfig, resume: Path | None) -> None:
    from lakeclip.report.run import conclude
    from lakeclip.training.run import train

    conclude(train(config, resume=resume), "train")
