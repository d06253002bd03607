"""`lakeclip evaluate NAME` for a registered evaluation without a module of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, save, writable
from lakeclip.evaluation.registry import EVALUATIONS
from lakeclip.evaluation.run import EncodeConfig


@dataclass(frozen=True)
class RegisteredEvaluation:
    """A set of flags for a registered evaluation."""

    evaluation: ClassVar[str]

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER or huggingface:ORG/NAME."""
    lake: str
    """Deep Lake dataset with images, and with labels or captions if the evaluation needs them."""
    label_column: str | None = None
    """Column with the labels: texts, or integers together with --classes."""
    query: str | None = None
    """Rows to score: the WHERE clause of a Deep Lake query."""
    templates: str = "simple"
    """Prompts for the class names: the name of a set, or a file."""
    classes: str | None = None
    """Class names to choose from: a file with one per line, or cat,dog,… Default: the labels in the column."""
    rows: int | None = None
    """Score at most this many rows, always the same ones. Default: all."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write the scores to this file."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)


def flags_of(name: str) -> type[RegisteredEvaluation]:
    """Return the class of an evaluation's flags, with the evaluation's description as its help."""
    attributes = {"evaluation": name, "__doc__": EVALUATIONS[name].about or f"Compute the score {name}."}
    return type(name, (RegisteredEvaluation,), attributes)


def run_registered(flags: RegisteredEvaluation) -> None:
    """Run a registered evaluation, and print its scores."""
    from lakeclip.evaluation.evaluator import evaluate

    json_file = writable(flags.json_file)
    scores = evaluate(
        flags.checkpoint,
        flags.lake,
        [flags.evaluation],
        label_column=flags.label_column,
        query=flags.query,
        classes=flags.classes,
        templates=flags.templates,
        rows=flags.rows,
        encode=flags.encode,
    )
    save(json_file, {"checkpoint": flags.checkpoint, "lake": flags.lake, **scores})
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for score, value in scores.items():
        table.add_row(plain(score), f"{value:.4g}")
    console().print(table)
