"""`lakeclip evaluate zeroshot`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, plottable, save, writable
from lakeclip.cli.report import Effort, ZeroShotTest, load_model, score

if TYPE_CHECKING:
    from lakeclip.evaluation.zeroshot import ZeroShotResult

#: Rows of a table on the screen; the JSON file has them all.
_MAX_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class ZeroShot:
    """Classify a lake's images by the class names alone, and count how many are right."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    lake: str
    """Deep Lake dataset with images and labels."""
    label_column: str
    """Column with the labels: texts, or integers together with --classes."""
    query: str | None = None
    """Which rows to score: the WHERE clause of a Deep Lake query."""
    templates: str = "simple"
    """Sentences for the class names: simple, openai-7, openai-80, one of OpenAI's for a data set (cifar, food101, pets,
    eurosat, …), or a file with one a line, {} for the name."""
    classes: str | None = None
    """Names to choose among: a file with one a line, or cat,dog,… Default: the labels that there are."""
    image_column: str | None = None
    """Column with the encoded images. Default: found by its name and type."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write all figures to this file as well."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw how far its confidence can be believed, and each class: a .png, .svg or .pdf file."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


def evaluate_zeroshot(flags: ZeroShot) -> None:
    """`lakeclip evaluate zeroshot`."""
    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    test = ZeroShotTest(
        "", flags.lake, flags.label_column, query=flags.query, templates=flags.templates, classes=flags.classes
    )
    model = load_model(flags.checkpoint, flags.effort)
    section = score(test, model, flags.effort, image_column=flags.image_column)
    save(json_file, {"checkpoint": flags.checkpoint, "lake": flags.lake, **section.result.to_json()})
    if plot is not None:
        from lakeclip.evaluation.pages.plots import plot_zero_shot, save_plot

        save_plot(plot_zero_shot(section.result), plot)
    _show_zeroshot(section.result)


def _show_zeroshot(result: ZeroShotResult) -> None:
    low, high = result.interval
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        "top-1", f"[bold]{result.top1:.1%}[/]", f"{result.top1 / result.chance:.1f}× chance ({result.chance:.1%})"
    )
    table.add_row("", "", f"{low:.1%} to {high:.1%} with 95% confidence")
    if len(result.classes) > 5:
        table.add_row("top-5", f"{result.top5:.1%}")
    table.add_row("mean per class", f"{result.mean_per_class:.1%}")
    if said := result.calibration:
        means = f"says {said.confidence:.0%} on average, is right {said.accuracy:.0%}"
        table.add_row("calibration error", f"{said.error:.1%}", means)
    table.add_row("images", f"{result.num_samples:,}")
    if result.num_unlabelled:
        table.add_row("", "", f"{result.num_unlabelled:,} more have no label and were left out")
    if result.num_undecodable:
        table.add_row("", "", f"{result.num_undecodable:,} more could not be decoded and were left out")
    sentences = result.templates.templates
    more = f" and {len(sentences) - 1} more" if len(sentences) > 1 else ""
    table.add_row("prompts", plain(result.templates.name), plain(f"{sentences[0]!r}{more}"))
    if result.cleaned:
        label, name = next(iter(result.cleaned.items()))
        more = f" and {len(result.cleaned) - 1} more" if len(result.cleaned) > 1 else ""
        table.add_row("names", "cleaned", plain(f"{label!r} is said {name!r}{more}"))
    screen = console()
    screen.print(table)
    hardest = sorted(result.per_class, key=lambda score: (score.accuracy is None, score.accuracy))
    taken_for = {true: (wrong, count) for true, wrong, count in reversed(result.confusions(len(result.classes) ** 2))}
    classes = Table(box=None, padding=(0, 2, 0, 0), title="\nhardest first", title_justify="left")
    for heading in ("class", "images", "found", "precision", "most often taken for"):
        classes.add_column(heading, justify="right" if heading in ("images", "found", "precision") else "left")
    for one in hardest[:_MAX_SHOWN_CLASSES]:
        wrong, count = taken_for.get(one.name, ("", 0))
        classes.add_row(
            plain(one.name),
            f"{one.num_samples:,}",
            "–" if one.accuracy is None else f"{one.accuracy:.0%}",
            "–" if one.precision is None else f"{one.precision:.0%}",
            plain(f"{wrong} ({count})") if count else "",
        )
    screen.print(classes)
    if len(hardest) > _MAX_SHOWN_CLASSES:
        screen.print(f"… and {len(hardest) - _MAX_SHOWN_CLASSES} easier classes: --json FILE has them all")
