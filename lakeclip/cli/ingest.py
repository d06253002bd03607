"""`lakeclip ingest`: images and captions into a lake."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from lakeclip.cli.output import plain, save, writable
from lakeclip.errors import ConfigError
from lakeclip.lake.download.options import DownloadOptions

if TYPE_CHECKING:
    from lakeclip.lake.ingest import IngestReport


@dataclass(frozen=True)
class IngestArguments:
    """Read sources into a Deep Lake dataset: `lakeclip ingest SRC [SRC ...] LAKE`.

    A source is a folder of pairs (images and .txt captions that share a stem, anywhere below it, one caption a line);
    WebDataset tars (KEY.jpg, KEY.txt, and KEY.json whose values become columns); tables (Parquet, CSV, TSV, JSONL) of
    images, of files' names or of addresses; or another lake, on disk or at s3://, gs://, az://, hub://, al://. Files
    may be given by wildcards and ranges such as train-{0000..0003}.tar, or by a folder that holds them.

    Images are kept byte for byte. What cannot be used is left out, counted, and listed with the reason. An ingest that
    was cut short goes on when the same command is given again: every row is there once.
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC [SRC ...] LAKE", help_behavior_hint="")
    ]
    """What to read, and last the folder or the address of the lake."""
    append: bool = False
    """Add to the lake that is there what it does not hold yet."""
    overwrite: bool = False
    """Replace the lake that is there. What is not a lake is never touched."""
    image_column: str | None = None
    """Column of tables and lakes with the images, their addresses or their files' names. Default: found by its name."""
    caption_column: str | None = None
    """Column of tables and lakes with the captions. Default: found by its name."""
    query: str | None = None
    """Of a lake that is read, only these rows: a WHERE clause, such as "width > 200"."""
    download: bool = False
    """Fetch the images of rows that have only an address. With a LAKE alone, fill in what it lacks, failures too."""
    downloading: DownloadOptions = field(default_factory=DownloadOptions)
    report: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the account to this JSON file, with every file that was left out."""


def run(argv: list[str]) -> None:
    """Ingest, and print the account.

    Raises:
        ConfigError: paths or flags that do not go together.
        SourceError: nothing in the sources can become a row.
        LakeError: there is a lake already, or a folder that is none.
        OutputError: the lake or the report cannot be written.
    """
    arguments = tyro.cli(IngestArguments, args=argv, prog="lakeclip ingest", config=(tyro.conf.OmitArgPrefixes,))
    in_place = arguments.download and len(arguments.paths) == 1
    if len(arguments.paths) < 2 and not in_place:
        raise ConfigError(
            "ingest needs at least one source and a lake",
            found=" ".join(arguments.paths) or "no paths",
            allowed="lakeclip ingest SRC [SRC ...] LAKE",
        )
    if not arguments.download and arguments.downloading != DownloadOptions():
        raise ConfigError("there are options for downloading, and nothing is downloaded", next_step="add --download")
    if arguments.report is not None:
        # Found out now, not after the work.
        writable(arguments.report)
    *sources, lake = arguments.paths
    if in_place:
        from lakeclip.lake.materialise import fill_images

        report = fill_images(lake, arguments.downloading, query=arguments.query, url_column=arguments.image_column)
    else:
        from lakeclip.lake.ingest import ingest

        report = ingest(
            sources,
            lake,
            overwrite=arguments.overwrite,
            append=arguments.append,
            image_column=arguments.image_column,
            caption_column=arguments.caption_column,
            query=arguments.query,
            download=arguments.downloading if arguments.download else None,
        )
    if arguments.report is not None:
        save(Path(arguments.report), report.to_dict())
    _show(report, arguments.report)


def _show(report: IngestReport, file: str | None) -> None:
    # A pipe has no width: there nothing is cut off.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for source, mapping in report.mapping.items():
        columns = "; ".join(f"{role}: {name}" for role, name in mapping.items())
        table.add_row("columns of", "", plain(f"{source}: {columns}"))
    table.add_row("rows in", f"{report.rows:,}", f"beside {report.rows_before:,} before" if report.rows_before else "")
    if report.known:
        table.add_row("  in the lake already", f"{report.known:,}", "")
    if report.unusable:
        table.add_row(
            "  without a usable image", f"{report.unusable.total():,}", "their addresses stay, to be downloaded"
        )
    for reason, count in report.unusable.most_common(10):
        table.add_row(f"    {plain(reason)}", f"{count:,}", "")
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
        table.add_row(f"  {kind}", f"{count:,}", plain(", ".join(examples[kind]) + more))
    if report.collisions:
        table.add_row("names used twice", f"{len(report.collisions):,}", "")
        for collision in report.collisions[:3]:
            table.add_row("", "", plain(f"{collision.key}: {_some(collision.paths)}; {collision.outcome}"))
    if report.ignored:
        suffixes = ", ".join(f"{count:,} {suffix}" for suffix, count in report.ignored.most_common(5))
        table.add_row("other files", f"{report.ignored.total():,}", plain(suffixes))
    table.add_row("seconds", f"{report.seconds:,.1f}", f"{report.rows_per_second:,.0f} rows/s")
    console.print(table)
    console.print(f"columns: {plain(', '.join(f'{name} ({kind})' for name, kind in report.columns.items()))}")
    if file is not None:
        console.print(f"every file that was left out: {plain(file)}")
    elif report.rejected or report.collisions:
        console.print("--report FILE lists every file that was left out")
    if report.unusable:
        console.print(f"again: lakeclip ingest --download {shlex.quote(report.lake)}", soft_wrap=True, markup=False)
    console.print(f"next: lakeclip inspect {shlex.quote(report.lake)}", soft_wrap=True, markup=False)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
