"""`lakeclip inspect`: show a lake, the origin of a checkpoint, weights of another project, or the batch of a step.

There is a module for each, behind one set of flags. The path decides which one runs.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from lakeclip.checkpoints.folder import CONFIG
from lakeclip.cli.inspect.arguments import InspectArguments
from lakeclip.cli.inspect.batch import inspect_batch
from lakeclip.cli.inspect.checkpoint import inspect_checkpoint
from lakeclip.cli.inspect.lake import inspect_lake
from lakeclip.cli.inspect.weights import inspect_weights
from lakeclip.errors import ConfigError


def run(argv: list[str]) -> None:
    """Show the lake, checkpoint or batch that the arguments name.

    Raises:
        LakeclipError: invalid flags, lake, checkpoint or output.
    """
    arguments = tyro.cli(InspectArguments, args=argv, prog="lakeclip inspect")
    if arguments.what.partition(":")[0] in _LAYOUTS:
        _refuse(arguments, (*_LAKE_FLAGS, "batch", "html", "samples"), "weights")
        inspect_weights(arguments.what, arguments.json_file)
    elif not _is_checkpoint(arguments.what):
        _refuse(arguments, ("batch",), "a lake")
        inspect_lake(arguments)
    elif arguments.batch is not None:
        _refuse(arguments, _LAKE_FLAGS, "a batch")
        inspect_batch(arguments.what, arguments.batch, arguments.html, arguments.json_file, arguments.samples)
    else:
        _refuse(arguments, (*_LAKE_FLAGS, "html", "samples"), "a checkpoint")
        inspect_checkpoint(arguments.what, arguments.json_file)


#: Layouts of weights of other projects, as in `checkpoints.layouts`, which imports torch.
_LAYOUTS = ("openai", "open_clip", "huggingface")
_LAKE_FLAGS = ("query", "image_column", "caption_column", "full")


def _is_checkpoint(what: str) -> bool:
    path = Path(what)
    return path.is_file() or path.suffix == ".ckpt" or _is_run(path)


def _is_run(path: Path) -> bool:
    # A lake may have a column named "checkpoints", so a folder of that name is not enough.
    return (path / CONFIG).is_file() or any((path / "checkpoints").glob("*.ckpt"))


def _refuse(arguments: InspectArguments, names: tuple[str, ...], kind: str) -> None:
    given = [name for name in names if getattr(arguments, name) not in (None, False)]
    if given:
        raise ConfigError(
            f"--{given[0].replace('_', '-')} does not apply: {arguments.what} is shown as {kind}",
            allowed="--json FILE"
            + {"a checkpoint": ", --batch N", "a batch": ", --html FILE, --samples N"}.get(kind, ""),
        )
