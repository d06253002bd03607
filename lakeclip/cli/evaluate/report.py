"""`lakeclip evaluate report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lakeclip.cli.output import console, plain
from lakeclip.errors import ConfigError
from lakeclip.evaluation.run import EncodeConfig, ZeroShotTest
from lakeclip.report.run import make_report


@dataclass(frozen=True)
class Report:
    """Rewrite a run's report.html: its curves, retrieval on its validation rows, and a zero-shot test with --lake."""

    run: str
    """Folder of the run."""
    lake: str | None = None
    """Deep Lake dataset with images and labels, for a zero-shot test."""
    label_column: str | None = None
    """Its column with the labels."""
    query: str | None = None
    """Rows of --lake to score: the WHERE clause of a Deep Lake query."""
    templates: str = "simple"
    """Prompts for the class names: the name of a set, or a file."""
    classes: str | None = None
    """Class names to choose from: a file with one per line, or cat,dog,…"""
    match_column: str | None = None
    """Column of the run's own data; in the gallery, images with the same value in it match each other's captions."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)


def run_report(flags: Report) -> None:
    """Run `lakeclip evaluate report`."""
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
    report = make_report(flags.run, tests, match_column=flags.match_column, encode=flags.encode)
    console().print(f"report: {plain(str(report.page))}", soft_wrap=True)
