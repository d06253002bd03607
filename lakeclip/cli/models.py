"""`lakeclip models`: list the models by name, with the size and cost of each."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from lakeclip.errors import OutputError

if TYPE_CHECKING:
    from lakeclip.models.zoo import ModelSummary


@dataclass(frozen=True)
class ModelsArguments:
    """List the models with their parameters, the work of one forward pass, and their input size."""

    model_config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file with models of your own, in the layout of lakeclip/models/configs. They are listed too."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write the figures and each model's settings to this file."""


def run(argv: list[str]) -> None:
    """Print the table; with --json also write {"models": {name: {figures, config}}}.

    Raises:
        ModelError: the model file is invalid.
        OutputError: the JSON file cannot be written.
    """
    arguments = tyro.cli(ModelsArguments, args=argv, prog="lakeclip models", description=ModelsArguments.__doc__)
    from lakeclip.models.zoo import available_models, summarize

    models = available_models(arguments.model_config)
    summaries = {name: summarize(config) for name, config in models.items()}
    if arguments.json_file is not None:
        figures = {
            name: {**asdict(summary), "gflops": summary.gflops, "config": asdict(models[name])}
            for name, summary in summaries.items()
        }
        _write(Path(arguments.json_file), json.dumps({"models": figures}, indent=2) + "\n")
    # A pipe has no width: use a wide console, so that nothing is cut off.
    Console(width=None if sys.stdout.isatty() else 200).print(_table(summaries))


def _table(summaries: dict[str, ModelSummary]) -> Table:
    table = Table(
        box=None,
        caption="Parameters in millions. GFLOPs of one forward pass over one pair, a multiply-add counted as two.",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for heading in ("parameters", "image", "text", "GFLOPs/pair", "input", "embed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, summary in summaries.items():
        millions = (summary.parameters, summary.image_parameters, summary.text_parameters)
        side = summary.image_resolution
        table.add_row(
            name,
            *(f"{count / 1e6:.1f}" for count in millions),
            f"{summary.gflops:.1f}",
            f"{side}×{side}",
            str(summary.embed_dim),
        )
    return table


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
