"""Flags that `lakeclip train` and `lakeclip finetune` share, and the run that they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lakeclip.checkpoints.folder import CONFIG
from lakeclip.cli.dry_run import print_plan
from lakeclip.cli.reproduce import load_repeated, repeat
from lakeclip.config.load import Config, read_recipe
from lakeclip.errors import CheckpointError, ConfigError
from lakeclip.lake.mixture import SEPARATOR

#: `--resume auto`: resume the run of that name if it exists, or start it.
AUTO = "auto"


@dataclass(frozen=True)
class _BaseFlags:
    """Flags that decide the defaults of all others, so they are parsed first."""

    recipe: str | None = None
    resume: str | None = None
    repeat: str | None = None
    dry_run: bool = False
    lake: tyro.conf.UseAppendAction[tuple[str, ...]] = ()


@dataclass(frozen=True)
class _FinetuneBaseFlags(_BaseFlags):
    start: Annotated[str | None, tyro.conf.arg(name="from", aliases=["--start"])] = None


def run_verb(
    verb: Literal["train", "finetune"],
    flags_type: type[Any],
    config_type: type[Config],
    argv: list[str],
    work: Callable[[Config, Path | None], None],
) -> None:
    """Parse the flags of a verb, and train, resume, repeat or only plan the run.

    Args:
        flags_type: the dataclass of all flags, with the fields recipe, resume, repeat, dry_run and config.
        work: trains by a configuration, and resumes the run in a folder if one is given.

    Raises:
        LakeclipError: flags that do not fit together, or whatever stops the run.
    """
    base_type: type[_BaseFlags] = _FinetuneBaseFlags if verb == "finetune" else _BaseFlags
    base: _BaseFlags
    rest: list[str]
    base, rest = _parse_base(base_type, verb, argv)
    given = {"--repeat": base.repeat, "--resume": base.resume, "--recipe": base.recipe}
    names: list[str] = [name for name, value in given.items() if value]
    if base.repeat and (base.dry_run or len(names) > 1):
        raise ConfigError(
            f"{' and '.join([*names, *(['--dry-run'] if base.dry_run else [])])} cannot be combined",
            next_step="--repeat alone: the checkpoint has its settings",
        )

    parse = partial(_parse, flags_type, verb, base, rest)
    if base.repeat:
        start, past = load_repeated(base.repeat, config_type)
        repeat(parse(start), past)
        return
    config, resume = _load_defaults(base, config_type, parse)
    config = parse(config)
    if not base.dry_run:
        work(config, resume)
    elif resume:
        raise ConfigError(
            "--dry-run does not plan the rest of a run",
            next_step=f"lakeclip {verb} --recipe {resume / CONFIG} --dry-run plans such a run from its start",
        )
    else:
        print_plan(config)


def _parse_base(base_type: type[_BaseFlags], verb: str, argv: list[str]) -> tuple[_BaseFlags, list[str]]:
    """Return the base flags, and the rest of the command line."""
    return tyro.cli(base_type, args=argv, prog=f"lakeclip {verb}", add_help=False, return_unknown_args=True)


def _parse(flags_type: type[Any], verb: str, base: _BaseFlags, rest: list[str], config: Config) -> Config:
    """Parse all flags, with a configuration as their defaults."""
    values: dict[str, Any] = {"data": replace(config.data, lake=SEPARATOR.join(base.lake))} if base.lake else {}
    if isinstance(base, _FinetuneBaseFlags) and base.start is not None:
        values["start"] = base.start
    default = flags_type(
        recipe=base.recipe,
        resume=base.resume,
        repeat=base.repeat,
        dry_run=base.dry_run,
        config=replace(config, **values),
    )
    flags = tyro.cli(
        flags_type, args=rest, prog=f"lakeclip {verb}", default=default, config=(tyro.conf.OmitArgPrefixes,)
    )
    parsed: Config = flags.config
    return parsed


def _load_defaults(
    base: _BaseFlags, config_type: type[Config], parse: Callable[[Config], Config]
) -> tuple[Config, Path | None]:
    """Return the configuration that the flags change, and the folder of the run to resume.

    Raises:
        ConfigError: both a recipe and a run are named, or the recipe belongs to another verb.
        CheckpointError: the folder holds no run.
    """
    recipe = read_recipe(base.recipe, config_type) if base.recipe else config_type()
    if base.resume == AUTO:
        trainer = parse(recipe).trainer
        if trainer.name is None:
            raise ConfigError("--resume auto needs the name of the run", next_step="--name NAME")
        folder = Path(trainer.runs) / trainer.name
        if not (folder / CONFIG).is_file():
            return recipe, None
        return read_recipe(folder / CONFIG, config_type), folder
    if base.resume is None:
        return recipe, None
    if base.recipe:
        raise ConfigError("--recipe and --resume exclude each other", next_step="--resume alone: it has its recipe")
    folder = Path(base.resume)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is not a run's folder: it holds no config.yaml")
    return read_recipe(folder / CONFIG, config_type), folder
