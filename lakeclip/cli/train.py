"""`lakeclip train`: from scratch, by recipe and flags, or onwards from an earlier run."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lakeclip.checkpoints.folder import CONFIG
from lakeclip.cli.plan import show_plan
from lakeclip.cli.repeat import refuse_together, repeat, start_of
from lakeclip.config.load import Config, read_recipe
from lakeclip.config.schema import TrainConfig
from lakeclip.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lakeclip.training.run import FinishedRun


#: `--resume auto`: the run of that name if there is one, or else a new one.
AUTO = "auto"


@dataclass(frozen=True)
class TrainFlags:
    """Train CLIP from scratch on a lake or a folder of pairs.

    Settings come from the defaults, then the recipe, then the flags. The token of a lake that asks for one is read from
    the environment: ACTIVELOOP_TOKEN.
    """

    recipe: str | None = None
    """A YAML recipe, or the name of a shipped one (small, flickr, cc3m, cc12m, laion400m)."""
    resume: str | None = None
    """Folder of an earlier run: its configuration, and on from its newest whole checkpoint. Or auto: the run of --name
    if it is there, or else a new one, so that one command both begins and goes on."""
    repeat: str | None = None
    """A checkpoint, or a run's folder (its last): run it again, and say whether the weights are the same."""
    dry_run: bool = False
    """Train nothing: try a few steps and print what the run would need, how long it takes, and what looks wrong."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def run(argv: list[str]) -> None:
    """Parse the flags, train, and say where the result is."""
    argv = mixed(argv)
    if repeated := flag_value(argv, "--repeat"):
        start, past = start_of(repeated, TrainConfig)
        recipe = resume = None
    else:
        start, recipe, resume = starting_point(argv, TrainConfig)
    flags = tyro.cli(
        TrainFlags,
        args=argv,
        prog="lakeclip train",
        default=TrainFlags(recipe=recipe, resume=resume, repeat=repeated, config=start),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if repeated:
        others = {"--recipe": flags.recipe, "--resume": flags.resume, "--dry-run": flags.dry_run}
        refuse_together({"--repeat": repeated, **others})
        repeat(flags.config, past)
        return
    if flags.dry_run:
        if resume:
            raise ConfigError(
                "a run to resume is planned already",
                next_step=f"lakeclip train --recipe {Path(resume) / 'config.yaml'} --dry-run, for such a run anew",
            )
        show_plan(flags.config)
        return
    train(flags.config, resume=Path(resume) if resume else None)


def train(config: TrainConfig, *, resume: Path | None = None, report: bool = True) -> None:
    """Train, write the run's report, and tell the user what to do with it.

    Args:
        resume: folder of the run to go on with.
        report: write report.html at the end.
    """
    from lakeclip.training.run import train as train_run

    conclude(train_run(config, resume=resume, token=os.environ.get("ACTIVELOOP_TOKEN")), "train", report=report)


def conclude(finished: FinishedRun, verb: str, *, report: bool = True) -> None:
    """Tell the user what a run of a verb left; where a signal stopped it, end the process with 128 and its number."""
    from lakeclip.cli.report import make_report

    if finished.is_main:
        say = sys.stdout.write
        if finished.speed is not None:
            say(f"{finished.speed} · {finished.evaluation:.1%} of the time evaluating\n")
        if finished.scores:
            say(" · ".join(f"{name} {value:.1%}" for name, value in finished.scores.items()) + "\n")
        if finished.interrupted:
            folder = shlex.quote(str(finished.folder))
            say(f"stopped after step {finished.steps}\n  go on with: lakeclip {verb} --resume {folder}\n")
        else:
            say(f"trained {finished.steps} steps in {finished.seconds:.0f} s: {finished.folder}\n")
            if report:
                say(f"report: {make_report(finished.folder)[0]}\n")
    if finished.interrupted:
        sys.exit(128 + (finished.signal or signal.SIGINT))


def starting_point(argv: list[str], kind: type[Config]) -> tuple[Config, str | None, str | None]:
    """The configuration that the flags change: the defaults, a recipe's, or an earlier run's; and which was named.

    Raises:
        ConfigError: both a recipe and a run are named, or the recipe is of another verb.
        CheckpointError: the run is none.
    """
    recipe, resume = flag_value(argv, "--recipe"), flag_value(argv, "--resume")
    if resume == AUTO:
        resume = _run_of_name(argv, read_recipe(recipe, kind) if recipe else kind())
        recipe = None if resume else recipe
    if recipe and resume:
        raise ConfigError(
            "both a recipe and a run to resume are named", next_step="keep --resume: it brings its recipe"
        )
    if recipe:
        return read_recipe(recipe, kind), recipe, resume
    if resume:
        if not (Path(resume) / CONFIG).is_file():
            raise CheckpointError(f"{resume} is not a run's folder: it holds no config.yaml")
        return read_recipe(Path(resume) / CONFIG, kind), recipe, resume
    return kind(), recipe, resume


def _run_of_name(argv: list[str], start: Config) -> str | None:
    """The folder of the run that is named, if it has begun.

    Raises:
        ConfigError: none is named.
    """
    name = flag_value(argv, "--name") or start.trainer.name
    if name is None:
        raise ConfigError("--resume auto is asked for, and the run has no name", next_step="--name NAME")
    folder = Path(flag_value(argv, "--runs") or start.trainer.runs) / name
    return str(folder) if (folder / CONFIG).is_file() else None


def mixed(argv: list[str]) -> list[str]:
    """Several `--lake` flags as one that names the mixture."""
    lakes, others, words = [], [], iter(argv)
    for word in words:
        if word == "--lake":
            lakes.append(next(words, ""))
        elif word.startswith("--lake="):
            lakes.append(word.partition("=")[2])
        else:
            others.append(word)
    return [*others, "--lake", " + ".join(lakes)] if len(lakes) > 1 else argv


def flag_value(argv: list[str], flag: str) -> str | None:
    """The value of a flag that must be known before the others can be parsed, as it gives them their defaults."""
    for place, word in enumerate(argv):
        if word == flag and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None
