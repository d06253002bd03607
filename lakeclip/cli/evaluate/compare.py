"""`lakeclip evaluate compare`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, save, writable
from lakeclip.evaluation.run import EncodeConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakeclip.report.compare_runs import Comparison
    from lakeclip.report.comparison import RunRecord


@dataclass(frozen=True)
class Compare:
    """Compare runs: their recorded metrics, their settings and their curves; and, with --lake or --retrieval-lake,
    their scores on the same data, with tests of significance."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Two or more run folders or .ckpt files. The others are compared with the first."""
    lake: str | None = None
    """Deep Lake dataset with images and labels, for a zero-shot test of all runs."""
    label_column: str | None = None
    """Its column with the labels."""
    query: str | None = None
    """Rows of --lake to score: the WHERE clause of a Deep Lake query."""
    templates: str = "simple"
    """Prompts for the class names: the name of a set, or a file."""
    classes: str | None = None
    """Class names to choose from: a file with one per line, or cat,dog,…"""
    retrieval_lake: str | None = None
    """Deep Lake dataset with images and captions, for retrieval by all runs. Default: with --lake, the rows that the
    first run validated on."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = "compare.html"
    """HTML page to write."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write all figures to this file."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)


def run_compare(flags: Compare) -> None:
    """Run `lakeclip evaluate compare`."""
    from lakeclip.report.compare_runs import compare_runs

    out, json_file = writable(flags.out), writable(flags.json_file)
    assert out is not None
    comparison = compare_runs(
        flags.runs,
        lake=flags.lake,
        label_column=flags.label_column,
        query=flags.query,
        templates=flags.templates,
        classes=flags.classes,
        retrieval_lake=flags.retrieval_lake,
        encode=flags.encode,
    )
    for warning in comparison.warnings:
        sys.stderr.write(f"note: {warning}\n")
    save(json_file, comparison.to_json())
    _show(comparison)
    for caveat in comparison.caveats:
        console().print(f"note: {caveat}")
    console().print(f"page: {plain(str(comparison.write_page(out)))}", soft_wrap=True)


def _show(comparison: Comparison) -> None:
    from lakeclip.report.comparison import differing_settings
    from lakeclip.report.comparison_page import describe, p_text, verdict_text
    from lakeclip.report.run_summary import duration

    runs, zeroshot, retrieval = comparison.runs, comparison.zeroshot, comparison.retrieval
    rows: dict[str, list[str]] = {
        "model": [run.model for run in runs],
        "parameters": [f"{run.num_parameters / 1e6:,.1f} M" for run in runs],
        "steps": [f"{run.steps:,}" for run in runs],
        "pairs seen": [f"{run.samples_seen:,}" for run in runs],
        "time": [duration(run.seconds) if run.seconds else "–" for run in runs],
        "pairs/s": [_number(run.samples_per_second, "{:,.0f}") for run in runs],
        "lowest validation loss": [_number(run.recorded.get("val/loss"), "{:.3f}") for run in runs],
        "  its image → text, R@1": [_number(run.recorded.get("val/image_to_text_R@1"), "{:.1%}") for run in runs],
        "  its text → image, R@1": [_number(run.recorded.get("val/text_to_image_R@1"), "{:.1%}") for run in runs],
    }
    if zeroshot is not None:
        rows[f"{zeroshot.title}, zero-shot top-1"] = [f"{result.top1:.1%}" for result in zeroshot.results]
        rows["  95% interval"] = ["{:.1%} to {:.1%}".format(*result.interval) for result in zeroshot.results]
        rows["  compared with the first, p"] = ["–", *(p_text(item.p_value) for item in zeroshot.differences)]
        rows["  verdict"] = ["–", *(verdict_text(item) for item in zeroshot.differences)]
    if retrieval is not None:
        for k in (1, 5):
            rows[f"image → text, R@{k}"] = [f"{result.image_to_text.recall[k]:.1%}" for result in retrieval.results]
            rows[f"text → image, R@{k}"] = [f"{result.text_to_image.recall[k]:.1%}" for result in retrieval.results]
    screen = console()
    screen.print(_table("", runs, rows))
    settings = {setting.name: list(setting.values) for setting in differing_settings(runs)}
    screen.print(
        _table("\ndiffering settings", runs, settings) if settings else "\nthe runs have the same settings and data"
    )
    screen.print("")
    for run, difference in zip(runs[1:], zeroshot.differences if zeroshot else (), strict=False):
        screen.print(plain(describe(difference, run.name, runs[0].name)), soft_wrap=True)
    if retrieval is not None:
        first = retrieval.results[0]
        candidates = f"Among {first.num_images:,} images and {first.num_texts:,} captions, the same for all runs."
        screen.print(plain(f"{candidates} {retrieval.about}"), soft_wrap=True)


def _table(title: str, runs: Sequence[RunRecord], rows: dict[str, list[Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(plain(run.name), justify="right")
    for label, values in rows.items():
        table.add_row(plain(label), *(plain(value) for value in values))
    return table


def _number(value: float | None, format_string: str) -> str:
    return "–" if value is None else format_string.format(value)
