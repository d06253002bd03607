"""`lakeclip evaluate compare`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, save, writable
from lakeclip.cli.report import Effort, load_model, retrieve, validation_rows
from lakeclip.config.schema import DataConfig
from lakeclip.errors import ConfigError, LakeclipError

if TYPE_CHECKING:
    from lakeclip.checkpoints.native import Checkpoint
    from lakeclip.evaluation.comparison import RetrievalScores, RunRecord, ZeroShotScores


@dataclass(frozen=True)
class Compare:
    """Set runs side by side: what they recorded, what differs in their settings, their curves in one page; and, with
    --lake or --retrieval-lake, their scores on the same data, and whether the differences are more than chance."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Two run folders or .ckpt files, or more. The others are measured by the first."""
    lake: str | None = None
    """Deep Lake dataset with images and labels, for a zero-shot test of all runs."""
    label_column: str | None = None
    """Its column with the labels."""
    query: str | None = None
    """Which of its rows to score."""
    templates: str = "simple"
    """Sentences for the class names: a set's name or a file."""
    classes: str | None = None
    """Names to choose among: a file with one a line, or cat,dog,…"""
    retrieval_lake: str | None = None
    """Deep Lake dataset with images and captions, for retrieval by all runs. Default: where --lake is given, the rows
    that the first run validated on."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = "compare.html"
    """The page. It belongs to no run, so it is written here."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write all figures to this file as well."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


def evaluate_compare(flags: Compare) -> None:
    """`lakeclip evaluate compare`."""
    from lakeclip.evaluation.comparison import caveats, differing_settings, same_data
    from lakeclip.evaluation.pages.comparison_page import render_comparison
    from lakeclip.evaluation.pages.page import write_page

    if flags.lake is None and (flags.label_column or flags.query or flags.classes):
        raise ConfigError("a zero-shot test needs data", next_step="--lake LAKE, beside --label-column COLUMN")
    if flags.lake is not None and flags.label_column is None:
        raise ConfigError("a zero-shot test needs labels", next_step="--label-column COLUMN, beside --lake")
    out, json_file = writable(flags.out), writable(flags.json_file)
    assert out is not None
    runs = _records(flags.runs)
    zeroshot = _zero_shot(runs, flags) if flags.lake is not None else None
    retrieval = _retrieval(runs, flags) if flags.lake is not None or flags.retrieval_lake is not None else None
    page = render_comparison(runs, zeroshot=zeroshot, retrieval=retrieval)
    save(
        json_file,
        {
            "runs": [run.to_json() for run in runs],
            "same_training_and_validation_rows": same_data(runs),
            "differing_settings": {
                setting.name: dict(zip((run.name for run in runs), setting.values, strict=True))
                for setting in differing_settings(runs)
            },
            "zeroshot": zeroshot.to_json(runs) if zeroshot else None,
            "retrieval": retrieval.to_json(runs) if retrieval else None,
        },
    )
    _show(runs, zeroshot, retrieval)
    for caveat in caveats(runs):
        console().print(f"note: {caveat}")
    console().print(f"page: {plain(str(write_page(out, page)))}", soft_wrap=True)


# ── what is compared ────────────────────────────────────────────────────────────────────────────────────────────────


def _records(names: tuple[str, ...]) -> list[RunRecord]:
    """The runs, each found to be one, and each once.

    Raises:
        ConfigError: fewer than two, more than can be told apart, or one twice.
        CheckpointError: a folder or a file is none.
    """
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.evaluation.pages.charts import MAX_SERIES

    if not 2 <= len(names) <= MAX_SERIES:
        raise ConfigError(
            f"{len(names) or 'no'} run{'' if len(names) == 1 else 's'} to compare",
            found=", ".join(names),
            allowed=f"2 to {MAX_SERIES} run folders or .ckpt files",
            next_step=f"lakeclip evaluate report --run {names[0]} shows one by itself" if len(names) == 1 else "",
        )
    found = [read_checkpoint(name) for name in names]
    places = [checkpoint.path.resolve() for checkpoint in found]
    for index, place in enumerate(places):
        if place in places[:index]:
            other = names[places.index(place)]
            raise ConfigError(
                f"{names[index]} is compared with itself", found=f"{other} and {names[index]} are {place}"
            )
    return [
        _record(name, Path(given), checkpoint)
        for name, given, checkpoint in zip(_names(names), names, found, strict=True)
    ]


def _record(name: str, given: Path, checkpoint: Checkpoint) -> RunRecord:
    from lakeclip.checkpoints.folder import LAST
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.evaluation.comparison import RunRecord
    from lakeclip.evaluation.pages.history import read_curves

    folder = checkpoint.path.parent.parent
    curves = read_curves(folder / "metrics.csv")
    last = checkpoint.lineage
    if given.is_dir():
        last = read_checkpoint(folder / LAST).lineage if (folder / LAST).is_file() else last
    else:
        # A checkpoint knows nothing of what came after it.
        reached = last["progress"]["step"]
        curves = {metric: [point for point in points if point[0] < reached] for metric, points in curves.items()}
    # Batch norm's statistics are no parameters, and are told by their names alone.
    parameters = sum(
        value.numel()
        for key, value in checkpoint.state_dict.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    return RunRecord(
        name,
        str(checkpoint.path),
        checkpoint.lineage,
        last,
        {metric: points for metric, points in curves.items() if points},
        parameters,
    )


def _names(paths: tuple[str, ...]) -> list[str]:
    """What to call each: the end of its path, as long as it takes to tell them apart."""
    parts = [Path(path).resolve().parts for path in paths]
    length = next(
        length for length in range(1, max(map(len, parts)) + 1) if len({own[-length:] for own in parts}) == len(parts)
    )
    return ["/".join(own[-length:]) for own in parts]


# ── scores on the same data ─────────────────────────────────────────────────────────────────────────────────────────


def _zero_shot(runs: list[RunRecord], flags: Compare) -> ZeroShotScores:
    from lakeclip.evaluation.comparison import ZeroShotScores, against_first, zero_shot_answers
    from lakeclip.evaluation.labels import parse_classes, read_labels
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.lake.dataset import open_lake

    assert flags.lake is not None
    assert flags.label_column is not None
    templates = find_templates(flags.templates)
    source = open_lake(flags.lake, flags.query)
    labels = read_labels(source, flags.label_column, parse_classes(flags.classes) if flags.classes else None)
    results, right = [], []
    for run in runs:
        result, own = zero_shot_answers(
            *load_model(run.checkpoint, flags.effort),
            source,
            labels,
            templates,
            batch_size=flags.effort.batch_size,
            num_workers=flags.effort.num_workers,
        )
        results.append(result)
        right.append(own)
    return ZeroShotScores(Path(flags.lake).name, tuple(results), against_first(right))


def _retrieval(runs: list[RunRecord], flags: Compare) -> RetrievalScores | None:
    from lakeclip.evaluation.comparison import RetrievalScores, same_data
    from lakeclip.lake.pairs import open_pairs

    positions: list[int] | None = None
    if flags.retrieval_lake is not None:
        source = open_pairs(DataConfig(lake=flags.retrieval_lake))
        about = f"From {source.path}."
    else:
        try:
            source, positions, about = validation_rows(dict(runs[0].lineage))
        except LakeclipError as error:
            sys.stderr.write(f"note: the comparison goes without retrieval. {error}\n")
            return None
        about = f"The rows of {runs[0].name}: {about[0].lower()}{about[1:]}"
        if not same_data(runs):
            about += (
                " The other runs were trained on other data or divided it otherwise, and may have seen some of them."
            )
    results = [retrieve(load_model(run.checkpoint, flags.effort), source, flags.effort, positions)[1] for run in runs]
    return RetrievalScores(about, tuple(results))


# ── the screen ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _show(runs: list[RunRecord], zeroshot: ZeroShotScores | None, retrieval: RetrievalScores | None) -> None:
    from lakeclip.evaluation.comparison import differing_settings
    from lakeclip.evaluation.pages.comparison_page import describe, p_text
    from lakeclip.evaluation.pages.facts import duration

    columns: dict[str, list[str]] = {
        "model": [run.model for run in runs],
        "parameters": [f"{run.num_parameters / 1e6:,.1f} M" for run in runs],
        "steps": [f"{run.steps:,}" for run in runs],
        "pairs seen": [f"{run.samples_seen:,}" for run in runs],
        "time": [duration(run.seconds) if run.seconds else "–" for run in runs],
        "pairs/s": [_number(run.samples_per_second, "{:,.0f}") for run in runs],
        "lowest val. loss": [_number(run.recorded.get("val/loss"), "{:.3f}") for run in runs],
        "  there image → text, R@1": [_number(run.recorded.get("val/image_to_text_R@1"), "{:.1%}") for run in runs],
        "  there text → image, R@1": [_number(run.recorded.get("val/text_to_image_R@1"), "{:.1%}") for run in runs],
    }
    if zeroshot is not None:
        columns[f"{zeroshot.title}, zero-shot top-1"] = [f"{result.top1:.1%}" for result in zeroshot.results]
        columns["  95% interval"] = ["{:.1%} to {:.1%}".format(*result.interval) for result in zeroshot.results]
        columns["  against the first, p"] = ["–", *(p_text(one.p_value) for one in zeroshot.differences)]
        columns["  so it is"] = ["–", *(one.verdict for one in zeroshot.differences)]
    if retrieval is not None:
        for k in (1, 5):
            columns[f"image → text, R@{k}"] = [f"{one.image_to_text.recall[k]:.1%}" for one in retrieval.results]
            columns[f"text → image, R@{k}"] = [f"{one.text_to_image.recall[k]:.1%}" for one in retrieval.results]
    screen = console()
    screen.print(_table("", runs, columns))
    settings = {setting.name: list(setting.values) for setting in differing_settings(runs)}
    screen.print(_table("\nwhat differs", runs, settings) if settings else "\nthe runs have the same settings and data")
    screen.print("")
    for run, difference in zip(runs[1:], zeroshot.differences if zeroshot else (), strict=False):
        screen.print(plain(describe(difference, run.name, runs[0].name)), soft_wrap=True)
    if retrieval is not None:
        first = retrieval.results[0]
        among = f"Among {first.num_images:,} images and {first.num_texts:,} captions, the same for all."
        screen.print(plain(f"{among} {retrieval.about}"), soft_wrap=True)


def _table(title: str, runs: list[RunRecord], rows: dict[str, list[Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(plain(run.name), justify="right")
    for label, values in rows.items():
        table.add_row(plain(label), *(plain(value) for value in values))
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
