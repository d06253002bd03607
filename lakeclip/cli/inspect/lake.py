"""`lakeclip inspect LAKE`: show the contents of a lake."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lakeclip.cli.output import plain, save
from lakeclip.errors import ConfigError, OutputError
from lakeclip.lake.statistics.counters import format_percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lakeclip.cli.inspect.arguments import InspectArguments
    from lakeclip.lake.dataset import Lake
    from lakeclip.lake.statistics.caption_stats import TokenCount
    from lakeclip.lake.statistics.counters import Bin, Stats
    from lakeclip.lake.statistics.summary import LakeSummary

_BAR = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
#: Largest number of rows with a problem on the page.
_MOST_FAULTY = 12
#: Default number of sample rows on the page.
_SAMPLES = 48


def inspect_lake(arguments: InspectArguments) -> None:
    """Print the figures; with --json also write them (`num_rows`, `columns`, …), with --html a page.

    Raises:
        ConfigError: a negative number of samples.
        LakeError: the lake cannot be opened, or the query or a named column is wrong.
        OutputError: a file cannot be written.
    """
    samples = _SAMPLES if arguments.samples is None else arguments.samples
    if samples < 0:
        raise ConfigError(f"--samples {samples} is negative", allowed="0 or more")
    from lakeclip.lake.dataset import open_lake
    from lakeclip.lake.statistics.summary import summarize

    lake = open_lake(
        arguments.what,
        arguments.query,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        include_unusable=True,
    )
    if arguments.image_column is not None:
        _ = lake.image_column
    if arguments.caption_column is not None:
        _ = lake.caption_column
    for file in (arguments.json_file, arguments.html):
        # Check before reading the lake, which may take long.
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise OutputError(f"cannot write {file}", found="its folder does not exist")
    tokens = _tokens()
    with _Bar() as bar:
        summary = summarize(lake, tokens=tokens, every_row=arguments.full, on_progress=bar.show)
    save(Path(arguments.json_file) if arguments.json_file is not None else None, summary.to_dict())
    if arguments.html is not None:
        _write_page(Path(arguments.html), lake, summary, tokens, samples)
    _show(summary)
    if arguments.html is not None:
        Console(highlight=False).print(f"page: {plain(arguments.html)}", soft_wrap=True)


def _tokens() -> TokenCount:
    from lakeclip.lake.statistics.caption_stats import TokenCount
    from lakeclip.text.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    return TokenCount(lambda text: len(tokenizer.encode(text)) + 2, tokenizer.context_length)


def _write_page(path: Path, lake: Lake, summary: LakeSummary, tokens: TokenCount, num_samples: int) -> None:
    import numpy as np

    from lakeclip.lake.statistics.samples import read_samples
    from lakeclip.report.lake_page import write_lake_page

    shown = np.linspace(0, len(lake) - 1, min(num_samples, len(lake))).astype(int).tolist()
    # One of each kind of problem, then the second of each, …
    examples = [problem.examples for problem in summary.problems]
    by_turns = [
        kind[index] for index in range(max(map(len, examples), default=0)) for kind in examples if index < len(kind)
    ]
    faulty = sorted(by_turns[:_MOST_FAULTY]) if num_samples else []
    write_lake_page(path, summary, read_samples(lake, shown), read_samples(lake, faulty), tokens=tokens)


class _Bar:
    """Progress bar in rows and rows per second, hidden if stderr is not a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,} of {task.total:,} rows, {task.fields[rate]:,.0f} rows/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, rate=0.0)
        task = self._tasks[what]
        elapsed = self._progress.tasks[list(self._tasks).index(what)].elapsed or 0.0
        self._progress.update(task, completed=done, rate=done / elapsed if elapsed else 0.0)


def _show(summary: LakeSummary) -> None:
    # A pipe has no width: use a wide console, so that nothing is cut off.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("lake", plain(f"{summary.path} ({summary.version})"))
    selected = f" of {summary.total_rows:,} by the query" if summary.query is not None else ""
    table.add_row("rows", f"{summary.num_rows:,}{selected}")
    _show_columns(table, summary)
    _show_captions(table, summary)
    _show_images(table, summary)
    _show_problems(table, summary)
    for index, example in enumerate(summary.examples):
        table.add_row("" if index else "examples", plain(example))
    console.print(table)
    if summary.words_histogram:
        _show_histograms(console, summary)
    if summary.rows_looked_at < summary.num_rows:
        console.print(f"Figures are from {summary.rows_looked_at:,} rows, spread evenly; --full reads all rows.")
    elif 0 < summary.rows_checked < summary.num_rows:
        console.print(f"Images: {summary.rows_checked:,} rows, spread evenly, were checked; --full checks all.")


def _show_columns(table: Table, summary: LakeSummary) -> None:
    for index, (name, kind) in enumerate(summary.columns.items()):
        role = {summary.image_column: " ← images", summary.caption_column: " ← captions"}.get(name, "")
        role = role or (" ← labels" if name in summary.label_columns else "")
        words = summary.contents[name].one_line if name in summary.contents else ""
        table.add_row("" if index else "columns", plain(f"{name} ({kind}){role}" + (f": {words}" if words else "")))
    if summary.image_column is None:
        table.add_row("images", "no usable column; name one with --image-column")
    if summary.caption_column is None:
        table.add_row("captions", "no usable column; name one with --caption-column")


def _show_captions(table: Table, summary: LakeSummary) -> None:
    if summary.with_captions is None:
        return
    table.add_row("with captions", f"{summary.with_captions:,} of {summary.rows_looked_at:,} rows")
    for label, spread in (
        ("  captions a row", summary.captions_per_row),
        ("  words", summary.caption_words),
        ("  characters", summary.caption_characters),
        ("  tokens", summary.caption_tokens),
    ):
        _add(table, label, spread)
    if summary.token_limit is not None and summary.num_captions:
        table.add_row(
            "  too long",
            f"{_share(summary.truncated, summary.num_captions)} captions have more than {summary.token_limit} tokens "
            "and are cut",
        )
    for text in summary.truncated_examples[:2]:
        table.add_row("", plain(f"{text[:160]}…"))
    same = summary.duplicate_captions
    if same is not None:
        about = " by estimate" if same.is_estimate else ""
        table.add_row(
            "  repeated", f"{format_percent(same.share)} of {same.rows:,} first captions occur more than once{about}"
        )
        for text, count in same.common:
            table.add_row("", plain(f"{'at least ' if same.is_estimate else ''}{count:,} × {text[:160]}"))


def _show_images(table: Table, summary: LakeSummary) -> None:
    if summary.formats:
        table.add_row("formats", plain(", ".join(f"{count:,} {kind}" for kind, count in summary.formats.items())))
    _add(table, "width (pixels)", summary.width)
    _add(table, "height (pixels)", summary.height)
    images = sum(summary.shapes.values())
    if summary.common_sizes:
        table.add_row("  common sizes", _counts(summary.common_sizes, images))
        table.add_row(
            "  proportions", _counts([(name, count) for name, count in summary.shapes.items() if count], images)
        )
    small = [f"{_share(count, images)} below {side}" for side, count in summary.shorter_side_below.items()]
    if small:
        table.add_row("  shorter side", "; ".join(small))
    same = summary.duplicate_images
    if same is not None and same.rows:
        about = " by estimate" if same.is_estimate else ""
        table.add_row("  repeated", f"{format_percent(same.share)} of {same.rows:,} images occur more than once{about}")


def _show_problems(table: Table, summary: LakeSummary) -> None:
    for index, (reason, count) in enumerate(summary.unusable.items()):
        label = "" if index else "no image, by notes"
        table.add_row(label, plain(f"{_share(count, summary.rows_looked_at)} rows: {reason}"))
    if not summary.rows_checked:
        return
    table.add_row("checked", f"{_share(summary.bad, summary.rows_checked)} rows cannot be trained on")
    for problem in summary.problems:
        examples = ", ".join(f"{row:,}" for row in problem.examples)
        more = ", …" if problem.rows > len(problem.examples) else ""
        table.add_row("", plain(f"{problem.rows:,} {problem.reason} (rows {examples}{more})"))


def _show_histograms(console: Console, summary: LakeSummary) -> None:
    """Print the histograms side by side, up to the longest caption."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    drawn = [("words", summary.words_histogram)]
    if summary.tokens_histogram:
        drawn.append(("tokens", summary.tokens_histogram))
    for title, _ in drawn:
        table.add_column(title, justify="right", no_wrap=True)
        table.add_column(min_width=_BAR, no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
    cells = [_bars(bins) for _, bins in drawn]
    for column in cells:
        while column[-1][1] == "":
            column.pop()
    for line in range(max(len(column) for column in cells)):
        table.add_row(*(cell for column in cells for cell in (column[line] if line < len(column) else ("", "", ""))))
    console.print(table)


def _bars(bins: list[Bin]) -> list[tuple[str, str, str]]:
    total, most = sum(bin_.count for bin_ in bins), max(bin_.count for bin_ in bins)
    lines = []
    for bin_ in bins:
        span = (
            f"{bin_.low}+"
            if bin_.high is None
            else f"{bin_.low}"
            if bin_.high == bin_.low
            else f"{bin_.low}–{bin_.high}"
        )
        whole, rest = divmod(round(8 * _BAR * bin_.count / (most or 1)), 8)
        bar = "█" * whole + _EIGHTHS[rest].strip()
        lines.append((span, bar or ("▏" if bin_.count else ""), format_percent(bin_.count / total)))
    return lines


def _add(table: Table, label: str, spread: Stats | None) -> None:
    if spread is not None:
        table.add_row(label, f"{spread.min:,} to {spread.max:,}, median {spread.median:,.0f}, mean {spread.mean:,.1f}")


def _counts(pairs: Iterable[tuple[str, int]], total: int) -> str:
    return ", ".join(f"{name} {format_percent(count / total)}" for name, count in pairs)


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({format_percent(count / (total or 1))})"
