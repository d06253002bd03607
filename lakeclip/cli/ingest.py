"""`lakeclip ingest`: images and captions into a lake."""

from __future__ import annotations

import json
import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakeclip.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from lakeclip.lake.ingest import IngestReport


@dataclass(frozen=True)
class IngestArguments:
    """Read sources into a new Deep Lake dataset: `lakeclip ingest SRC [SRC ...] LAKE`.

    A source is a folder of pairs (images and .txt captions that share a stem, anywhere below it, one caption a line)
    or WebDataset tars (KEY.jpg, KEY.txt, and KEY.json whose values become columns): files, wildcards, ranges such as
    train-{0000..0003}.tar, or a folder that holds them. Images are kept byte for byte. A file that cannot be used is
    left out, counted, and listed with the reason.
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC [SRC ...] LAKE", help_behavior_hint="")
    ]
    """What to read, and last the folder of the new lake."""
    overwrite: bool = False
    """Replace the lake that is there. What is not a lake is never touched."""
    report: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the account to this JSON file, with every file that was left out."""


def run(argv: list[str]) -> None:
    """Ingest, and print the account.

    Raises:
        ConfigError: fewer than two paths.
        SourceError: nothing in the sources can become a row.
        LakeError: there is a lake already, or a folder that is none.
        OutputError: the lake or the report cannot be written.
    """
    arguments = tyro.cli(IngestArguments, args=argv, prog="lakeclip ingest")
    if len(arguments.paths) < 2:
        raise ConfigError(
            "ingest needs at least one source and a lake",
            found=" ".join(arguments.paths) or "no paths",
            allowed="lakeclip ingest SRC [SRC ...] LAKE",
        )
    if arguments.report is not None:
        # Found out now, not after the work.
        _write(Path(arguments.report), "")
    from lakeclip.lake.ingest import ingest

    *sources, lake = arguments.paths
    report = ingest(sources, lake, overwrite=arguments.overwrite)
    if arguments.report is not None:
        _write(Path(arguments.report), json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    _show(report, arguments.report)


def _show(report: IngestReport, file: str | None) -> None:
    # A pipe has no width: there nothing is cut off.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("rows in", f"{report.rows:,}", "")
    if report.without_caption:
        table.add_row(
            "  without caption", f"{report.without_caption:,}", "for evaluation with labels; not for training"
        )
    table.add_row("left out", f"{report.reasons.total():,}", "")
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for item in report.rejected:
        kind, _, detail = item.reason.partition(": ")
        if len(examples[kind]) < 3:
            examples[kind].append(f"{item.key} ({detail})" if detail else item.key)
    for kind, count in report.reasons.most_common():
        more = ", …" if count > len(examples[kind]) else ""
        table.add_row(f"  {kind}", f"{count:,}", escape(", ".join(examples[kind]) + more))
    if report.collisions:
        table.add_row("names used twice", f"{len(report.collisions):,}", "")
        for collision in report.collisions[:3]:
            table.add_row("", "", escape(f"{collision.key}: {_some(collision.paths)}; {collision.outcome}"))
    if report.ignored:
        suffixes = ", ".join(f"{count:,} {suffix}" for suffix, count in report.ignored.most_common(5))
        table.add_row("other files", f"{report.ignored.total():,}", escape(suffixes))
    table.add_row("seconds", f"{report.seconds:,.1f}", f"{report.rows_per_second:,.0f} rows/s")
    console.print(table)
    console.print(f"columns: {escape(', '.join(f'{name} ({kind})' for name, kind in report.columns.items()))}")
    if file is not None:
        console.print(f"every file that was left out: {escape(file)}")
    elif report.rejected or report.collisions:
        console.print("--report FILE lists every file that was left out")
    console.print(f"next: lakeclip inspect {shlex.quote(report.lake)}", soft_wrap=True, markup=False)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
