"""`lakeclip inspect`: what is in a lake."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakeclip.errors import OutputError

if TYPE_CHECKING:
    from lakeclip.lake.summary import Spread, Summary


@dataclass(frozen=True)
class InspectArguments:
    """Show a lake: its rows, columns, captions and image sizes.

    Works on any Deep Lake dataset. The token of one that asks for it is read from the environment: ACTIVELOOP_TOKEN.
    """

    lake: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LAKE")]
    """Path or address of the dataset; @branch or @tag may follow."""
    query: str | None = None
    """Only the rows for which this WHERE clause holds, such as "width > 200 and label == 'cat'"."""
    image_column: str | None = None
    """Column with the encoded images. Default: found by its name and type."""
    caption_column: str | None = None
    """Column with the captions. Default: found by its name and type."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write the same figures to this file as well."""


def run(argv: list[str]) -> None:
    """Print the figures; with --json also write them (`num_rows`, `columns`, …).

    Raises:
        LakeError: the lake cannot be opened, or the query or a named column is wrong.
        OutputError: the JSON file cannot be written.
    """
    arguments = tyro.cli(InspectArguments, args=argv, prog="lakeclip inspect")
    from lakeclip.lake.dataset import open_lake
    from lakeclip.lake.summary import summarize

    lake = open_lake(
        arguments.lake,
        arguments.query,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
    )
    if arguments.image_column is not None:
        _ = lake.image_column
    if arguments.caption_column is not None:
        _ = lake.caption_column
    summary = summarize(lake)
    if arguments.json_file is not None:
        path = Path(arguments.json_file)
        try:
            path.write_text(json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
    _show(summary)


def _show(summary: Summary) -> None:
    # A pipe has no width: there nothing is cut off.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("lake", escape(f"{summary.path} ({summary.version})"))
    chosen = f" of {summary.total_rows:,} by the query" if summary.query is not None else ""
    table.add_row("rows", f"{summary.num_rows:,}{chosen}")
    for name, kind in summary.columns.items():
        role = {summary.image_column: " ← images", summary.caption_column: " ← captions"}.get(name, "")
        table.add_row("" if name != next(iter(summary.columns)) else "columns", escape(f"{name} ({kind}){role}"))
    if summary.image_column is None:
        table.add_row("images", "no usable column; name one with --image-column")
    if summary.caption_column is None:
        table.add_row("captions", "no usable column; name one with --caption-column")
    if summary.with_captions is not None:
        table.add_row("with captions", f"{summary.with_captions:,} of {summary.rows_looked_at:,} rows")
    for label, spread in (
        ("  captions a row", summary.captions_per_row),
        ("  words", summary.caption_words),
        ("  characters", summary.caption_characters),
    ):
        _add(table, label, spread)
    if summary.formats:
        table.add_row("formats", ", ".join(f"{count:,} {kind}" for kind, count in summary.formats.items()))
    _add(table, "width (pixels)", summary.width)
    _add(table, "height (pixels)", summary.height)
    for place, example in enumerate(summary.examples):
        table.add_row("" if place else "examples", escape(example))
    console.print(table)
    if summary.with_captions is not None and summary.rows_looked_at < summary.num_rows:
        console.print(f"Captions: from {summary.rows_looked_at:,} rows, spread evenly.")
    if 0 < summary.sizes_looked_at < summary.num_rows:
        console.print(f"Formats and sizes: from {summary.sizes_looked_at:,} rows, spread evenly.")


def _add(table: Table, label: str, spread: Spread | None) -> None:
    if spread is not None:
        table.add_row(label, f"{spread.min:,} to {spread.max:,}, median {spread.median:,.0f}, mean {spread.mean:,.1f}")
