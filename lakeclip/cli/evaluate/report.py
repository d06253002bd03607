"""`lakeclip evaluate report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lakeclip.cli.output import console, plain
from lakeclip.cli.report import Effort, ZeroShotTest, make_report
from lakeclip.errors import ConfigError


@dataclass(frozen=True)
class Report:
    """Write a run's report.html anew: curves, retrieval on its validation rows, a zero-shot test if one is named."""

    run: str
    """The run's folder."""
    lake: str | None = None
    """Deep Lake dataset with images and labels, for a zero-shot test."""
    label_column: str | None = None
    """Its column with the labels."""
    query: str | None = None
    """Which of its rows to score."""
    templates: str = "simple"
    """Sentences for the class names: a set's name or a file."""
    classes: str | None = None
    """Names to choose among: a file with one a line, or cat,dog,…"""
    match_column: str | None = None
    """Column of the run's own data: images with the same value count as the same thing in the gallery."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


def evaluate_report(flags: Report) -> None:
    """`lakeclip evaluate report`."""
    tests = []
    if flags.lake is not None:
        if flags.label_column is None:
            raise ConfigError("a zero-shot test needs labels", next_step="--label-column COLUMN, beside --lake")
        title = f"Zero-shot on {Path(flags.lake).name}"
        tests.append(
            ZeroShotTest(
                title,
                flags.lake,
                flags.label_column,
                query=flags.query,
                templates=flags.templates,
                classes=flags.classes,
            )
        )
    elif flags.label_column or flags.query or flags.classes:
        raise ConfigError("a zero-shot test needs data", next_step="--lake LAKE, beside --label-column COLUMN")
    page, _ = make_report(Path(flags.run), tests, match_column=flags.match_column, effort=flags.effort)
    console().print(f"report: {plain(str(page))}", soft_wrap=True)
