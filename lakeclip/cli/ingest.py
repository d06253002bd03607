"""`lakeclip ingest`: ingest images and captions into a lake."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from lakeclip.cli.output import plain, save, writable
from lakeclip.errors import ConfigError, escape_surrogates
from lakeclip.ingestion.download.options import DownloadOptions

if TYPE_CHECKING:
    from lakeclip.ingestion.result import IngestResult
    from lakeclip.lake.folder.account import Account

#: Limit on the messages about how the sources were read.
_MAX_NOTES = 12


@dataclass(frozen=True)
class IngestArguments:
    """Ingest image-caption pairs into a Deep Lake dataset: `lakeclip ingest SRC [SRC ...] LAKE`.

    A source is a folder of pairs (images and captions with the same stem, anywhere below it: .txt with one caption per
    line, .caption, .json); a Hugging Face image folder; WebDataset tar files (KEY.jpg, KEY.txt, and KEY.json whose
    values become columns); tables (Parquet, Arrow, CSV, TSV, JSONL, JSON) of images, file names or URLs; annotations of
    COCO, Karpathy, LLaVA, Flickr8k and Flickr30k; or another lake, on disk or at s3://, gs://, az://, hub://, al://.
    Files may be given by wildcards and ranges such as train-{0000..0003}.tar, or by a folder that holds them.

    Images are kept byte for byte. What cannot be used is skipped, counted, and listed with the reason. An interrupted
    ingest resumes when the same command is run again: every sample becomes exactly one row.
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC [SRC ...] LAKE", help_behavior_hint="")
    ]
    """Sources to read, and last the folder or the URL of the lake."""
    append: bool = False
    """Add the samples that an existing lake does not hold yet, and update the rows of those that have changed."""
    on_change: Literal["update", "keep", "add"] = "update"
    """With --append, for samples that have changed since they were ingested (a corrected caption, another image):
    update stores them in their rows, keep leaves the rows as they are, add adds further rows."""
    overwrite: bool = False
    """Replace an existing lake. Anything that is not a lake is never overwritten."""
    image_column: str | None = None
    """Column of tables and lakes with the images, their URLs or their file names. Default: inferred from its name."""
    caption_column: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """Column of tables and lakes, or key of JSON, with the captions; give it again for more. Default: by name."""
    caption_template: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Caption with names of columns or keys in braces, such as "a photo of a {label}"."""
    encoding: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Encoding of text files, such as gb18030. Default: detected."""
    delimiter: Annotated[str | None, tyro.conf.arg(metavar="CHARACTER")] = None
    """Separator of the columns of CSV files, such as ";", "|" or tab. Default: detected."""
    image_root: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder that file names of images in a table are relative to. Default: the folder of the table."""
    query: str | None = None
    """Read only these rows of a lake: a WHERE clause, such as "width > 200"."""
    download: bool = False
    """Download the images of rows that have only a URL. With a LAKE alone: all that it lacks, including failed ones."""
    downloading: DownloadOptions = field(default_factory=DownloadOptions)
    repair: bool = False
    """With a LAKE alone: repair it if it cannot be opened. A copy of what is changed is kept beside it."""
    report: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the result to this JSON file, with every file that was skipped."""


def run(argv: list[str]) -> None:
    """Parse the command line, ingest, and print the result.

    Raises:
        ConfigError: the arguments contradict one another.
        SourceError: no source contains a usable sample.
        LakeError: the lake exists already, or its path holds something else.
        OutputError: the lake or the report cannot be written.
        SystemExit: code 1, if there were downloads and all failed.
    """
    arguments = tyro.cli(IngestArguments, args=argv, prog="lakeclip ingest", config=(tyro.conf.OmitArgPrefixes,))
    if arguments.repair:
        _repair(arguments)
        return
    fills_lake = arguments.download and len(arguments.paths) == 1
    if len(arguments.paths) < 2 and not fills_lake:
        raise ConfigError(
            "ingest needs at least one source and a lake",
            found=" ".join(arguments.paths) or "no paths",
            allowed="lakeclip ingest SRC [SRC ...] LAKE",
        )
    if not arguments.download and arguments.downloading != DownloadOptions():
        raise ConfigError("download options have no effect without --download", next_step="add --download")
    if arguments.report is not None:
        # Fail before the work, not after it.
        writable(arguments.report)
    from lakeclip.ingestion.run import ingest

    *sources, lake = arguments.paths
    result = ingest(
        sources,
        lake,
        overwrite=arguments.overwrite,
        append=arguments.append,
        on_change=arguments.on_change,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        query=arguments.query,
        caption_template=arguments.caption_template,
        encoding=arguments.encoding,
        delimiter=arguments.delimiter,
        image_root=arguments.image_root,
        download=arguments.downloading if arguments.download else False,
    )
    if arguments.report is not None:
        save(Path(arguments.report), result.to_dict())
    _print(result, arguments.report)
    if result.failed_downloads and not result.downloaded:
        from lakeclip.ingestion.download.advice import no_downloads_error, only_dead_links_are_left

        if not only_dead_links_are_left(result):
            sys.stderr.write(f"error: {no_downloads_error(result)}\n")
            sys.exit(1)


def _repair(arguments: IngestArguments) -> None:
    if len(arguments.paths) != 1 or arguments != IngestArguments(arguments.paths, repair=True):
        raise ConfigError(
            "--repair repairs a lake and does nothing else",
            found=f"{len(arguments.paths)} paths, or other flags",
            allowed="lakeclip ingest --repair LAKE",
        )
    from lakeclip.ingestion.repair import repair_lake

    result = repair_lake(arguments.paths[0])
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    if not result.backup:
        table.add_row("nothing to repair", "", "the lake can be opened, and no file is missing")
    if result.mended:
        table.add_row("numbers mended in the log", f"{result.mended:,}", "Deep Lake can read it again")
    for column, count in result.missing.items():
        table.add_row(f"infinite or huge numbers in {plain(column)}", f"{count:,}", "now missing values")
    if result.removed:
        table.add_row("commits removed", f"{len(result.removed):,}", "their rows are lost: ingest the sources again")
    for message in result.removed[:10]:
        table.add_row("", "", plain(message))
    table.add_row("rows", f"{result.rows:,}", "")
    if result.backup:
        table.add_row("files as they were", "", plain(result.backup))
    console.print(table)
    lake = shlex.quote(escape_surrogates(result.lake))
    again = f"lakeclip ingest SOURCE {lake} --append" if result.removed else f"lakeclip inspect {lake}"
    console.print(f"next: {again}", soft_wrap=True, markup=False)


def _print(result: IngestResult, file: str | None) -> None:
    from lakeclip.ingestion.download.advice import failure_hint, next_downloads

    # A pipe has no width: 200 columns keep the table from being truncated.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for source, mapping in result.mapping.items():
        columns = "; ".join(f"{role}: {name}" for role, name in mapping.items())
        table.add_row("columns of", "", plain(f"{source}: {columns}"))
    existing = f"in addition to {result.rows_before:,} existing rows" if result.rows_before else ""
    table.add_row("rows added", f"{result.rows:,}", existing)
    if result.failed_downloads:
        total = result.downloaded + result.failed_downloads
        table.add_row("  downloaded", f"{result.downloaded:,}", f"of {total:,} images")
    if result.unusable:
        table.add_row(
            "  without a usable image", f"{result.unusable.total():,}", "kept with their URLs, to be downloaded"
        )
    for reason, count in result.unusable.most_common(10):
        table.add_row(f"    {plain(reason)}", f"{count:,}", failure_hint(reason))
    if result.without_caption:
        table.add_row(
            "  without caption", f"{result.without_caption:,}", "used for evaluation with labels, not for training"
        )
    if result.updated:
        texts = f"{result.updated - result.updated_images:,} captions or metadata"
        table.add_row("rows updated", f"{result.updated:,}", f"{texts}, {result.updated_images:,} images")
    if result.known:
        elsewhere = f"{result.elsewhere:,} of them read from a path that is gone" if result.elsewhere else ""
        table.add_row("in the lake already", f"{result.known:,}", elsewhere)
    if result.removed:
        table.add_row("no longer in the source", f"{result.removed:,}", "rows that are kept")
    for old, new in result.moved.items():
        table.add_row("moved", "", plain(f"{new}, formerly {old}"))
    table.add_row("skipped", f"{result.reasons.total():,}", "")
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for item in result.rejected:
        kind, _, detail = item.reason.partition(": ")
        if len(examples[kind]) < 3:
            examples[kind].append(f"{item.key} ({detail})" if detail else item.key)
    for kind, count in result.reasons.most_common():
        more = ", …" if count > len(examples[kind]) else ""
        table.add_row(f"  {kind}", f"{count:,}", plain(", ".join(examples[kind]) + more))
    if result.collisions:
        table.add_row("names used twice", f"{len(result.collisions):,}", "")
        for collision in result.collisions[:3]:
            table.add_row("", "", plain(f"{collision.key}: {_first(collision.paths)}; {collision.outcome}"))
    if result.ignored:
        suffixes = ", ".join(f"{count:,} {suffix}" for suffix, count in result.ignored.most_common(5))
        table.add_row("other files", f"{result.ignored.total():,}", plain(suffixes))
    for unit in result.account.read:
        table.add_row(f"{unit} read", f"{result.account.read[unit]:,}", plain(_outcome(result.account, unit)))
    if result.changed:
        table.add_row("values changed", f"{result.changed.total():,}", "")
    for reason, count in result.changed.most_common(10):
        place, _, change = reason.partition(": ")
        table.add_row(f"  {plain(place)}", f"{count:,}", plain(change))
    if result.renamed:
        renamed = ", ".join(f"{name} → {column}" for name, column in list(result.renamed.items())[:5])
        table.add_row("columns renamed", f"{len(result.renamed):,}", plain(renamed))
    table.add_row("seconds", f"{result.seconds:,.1f}", f"{result.rows_per_second:,.0f} rows/s")
    console.print(table)
    for note in result.notes[:_MAX_NOTES]:
        console.print(plain(note), soft_wrap=True)
    if len(result.notes) > _MAX_NOTES:
        console.print(f"and {len(result.notes) - _MAX_NOTES:,} more notes like these, which --report FILE lists")
    console.print(f"columns: {plain(', '.join(f'{name} ({kind})' for name, kind in result.columns.items()))}")
    if file is not None:
        console.print(f"every skipped file is listed in {plain(file)}")
    elif result.rejected or result.collisions:
        console.print("--report FILE lists every skipped file")
    for purpose, command in next_downloads(result):
        console.print(f"{purpose}: {command}", soft_wrap=True, markup=False)
    console.print(f"next: lakeclip inspect {shlex.quote(escape_surrogates(result.lake))}", soft_wrap=True, markup=False)


def _outcome(account: Account, unit: str) -> str:
    """Describe in words what became of the items of a unit."""
    left_out = [(reason, count) for (other, reason), count in account.left_out.most_common() if other == unit]
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in left_out[:8])
    more = f"; {len(left_out) - 8:,} other reasons" if len(left_out) > 8 else ""
    outcome = f"{account.used[unit]:,} used, {account.num_left_out(unit):,} left out"
    return f"{outcome}: {reasons}{more}" if left_out else "all used"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")
