"""`lakeclip inspect`: what is in a lake, where a checkpoint comes from, and what a step of its run was made of.

One module for each, behind one set of flags; what is named decides.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from lakeclip.checkpoints.folder import CONFIG
from lakeclip.cli.inspect.arguments import InspectArguments
from lakeclip.cli.inspect.batch import inspect_batch
from lakeclip.cli.inspect.checkpoint import inspect_checkpoint
from lakeclip.cli.inspect.lake import inspect_lake
from lakeclip.errors import ConfigError


def run(argv: list[str]) -> None:
    """Look at what the path is, and show it.

    Raises:
        LakeclipError: of the kind that says what is wrong: flags, lake, checkpoint or output.
    """
    arguments = tyro.cli(InspectArguments, args=argv, prog="lakeclip inspect")
    if not _is_checkpoint(arguments.what):
        _refuse(arguments, ("batch",), "a lake")
        inspect_lake(arguments)
    elif arguments.batch is not None:
        _refuse(arguments, _OF_A_LAKE, "a batch")
        inspect_batch(arguments.what, arguments.batch, arguments.html, arguments.json_file, arguments.samples)
    else:
        _refuse(arguments, (*_OF_A_LAKE, "html", "samples"), "a checkpoint")
        inspect_checkpoint(arguments.what, arguments.json_file)


_OF_A_LAKE = ("query", "image_column", "caption_column", "full")


def _is_checkpoint(what: str) -> bool:
    path = Path(what)
    return path.is_file() or path.suffix == ".ckpt" or _is_run(path)


def _is_run(path: Path) -> bool:
    # A lake may well have a column of that name.
    return (path / CONFIG).is_file() or any((path / "checkpoints").glob("*.ckpt"))


def _refuse(arguments: InspectArguments, names: tuple[str, ...], what: str) -> None:
    given = [name for name in names if getattr(arguments, name) not in (None, False)]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} is asked for, and {arguments.what} is shown as {what}",
            allowed="--json FILE"
            + {"a checkpoint": ", --batch N", "a batch": ", --html FILE, --samples N"}.get(what, ""),
        )
