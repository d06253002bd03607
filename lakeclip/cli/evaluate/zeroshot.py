"""`lakeclip evaluate zeroshot`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, plottable, save, writable
from lakeclip.evaluation.run import EncodeConfig, evaluate_zeroshot

if TYPE_CHECKING:
    from lakeclip.evaluation.zeroshot import ZeroShotResult

#: Rows of the table on the screen. The JSON file has every class.
_MAX_SHOWN_CLASSES = 20
_ADVICE = (
    "class names and prompts in the words of the captions (--classes, --templates); "
    "lakeclip evaluate retrieval and probe show whether the model learned at all; more images, if there are few"
)


@dataclass(frozen=True)
class ZeroShot:
    """Classify a lake's images by the class names alone, and count how many are right."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER or huggingface:ORG/NAME."""
    lake: str
    """Deep Lake dataset with images and labels."""
    label_column: str
    """Column with the labels: texts, or integers together with --classes."""
    query: str | None = None
    """Rows to score: the WHERE clause of a Deep Lake query."""
    templates: str = "simple"
    """Prompts for the class names: simple, openai-7, openai-80, one of OpenAI's for a data set (cifar, food101, pets,
    eurosat, …), or a file with one prompt per line, {} for the name."""
    classes: str | None = None
    """Class names to choose from: a file with one per line, or cat,dog,… Default: the labels in the column."""
    image_column: str | None = None
    """Column with the encoded images. Default: inferred from names and types."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write all figures to this file."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Plot the calibration and the accuracy of each class: a .png, .svg or .pdf file."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)


def run_zeroshot(flags: ZeroShot) -> None:
    """Run `lakeclip evaluate zeroshot`."""
    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    result = evaluate_zeroshot(
        flags.checkpoint,
        flags.lake,
        label_column=flags.label_column,
        query=flags.query,
        templates=flags.templates,
        classes=flags.classes,
        image_column=flags.image_column,
        encode=flags.encode,
    )
    save(json_file, {"checkpoint": flags.checkpoint, "lake": flags.lake, **result.to_json()})
    if plot is not None:
        from lakeclip.report.plots import plot_zero_shot, save_plot

        save_plot(plot_zero_shot(result), plot)
    _show(result)


def _show(result: ZeroShotResult) -> None:
    low, high = result.interval
    if result.standing.is_guessing:
        text = f"the model does no better than guessing: top-1 is {result.standing}\n  next:  {_ADVICE}\n"
        console().print(plain(text), soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        "top-1", f"[bold]{result.top1:.1%}[/]", f"{result.top1 / result.chance:.1f}× chance ({result.chance:.1%})"
    )
    table.add_row("", "", f"95% interval {low:.1%} to {high:.1%}")
    if result.top5 is not None:
        table.add_row("top-5", f"{result.top5:.1%}")
    table.add_row("mean per class", f"{result.mean_per_class:.1%}")
    if calibration := result.calibration:
        means = f"mean confidence {calibration.confidence:.0%}, accuracy {calibration.accuracy:.0%}"
        table.add_row("calibration error", f"{calibration.error:.1%}", means)
    table.add_row("images", f"{result.num_samples:,}")
    if result.num_unlabelled:
        table.add_row("", "", f"{result.num_unlabelled:,} without a label, skipped")
    if result.num_undecodable:
        table.add_row("", "", f"{result.num_undecodable:,} that could not be decoded, skipped")
    prompts = result.templates.templates
    more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
    table.add_row("prompts", plain(result.templates.name), plain(f"{prompts[0]!r}{more}"))
    if result.cleaned:
        label, name = next(iter(result.cleaned.items()))
        more = f" and {len(result.cleaned) - 1} more" if len(result.cleaned) > 1 else ""
        table.add_row("class names", "cleaned", plain(f"{label!r} → {name!r}{more}"))
    screen = console()
    screen.print(table)
    hardest = sorted(result.per_class, key=lambda score: (score.accuracy is None, score.accuracy))
    mistakes = {true: (wrong, count) for true, wrong, count in reversed(result.confusions(len(result.classes) ** 2))}
    classes = Table(box=None, padding=(0, 2, 0, 0), title="\nhardest classes first", title_justify="left")
    for heading in ("class", "images", "accuracy", "precision", "most often mistaken for"):
        classes.add_column(heading, justify="right" if heading in ("images", "accuracy", "precision") else "left")
    for score in hardest[:_MAX_SHOWN_CLASSES]:
        wrong, count = mistakes.get(score.name, ("", 0))
        classes.add_row(
            plain(score.name),
            f"{score.num_samples:,}",
            "–" if score.accuracy is None else f"{score.accuracy:.0%}",
            "–" if score.precision is None else f"{score.precision:.0%}",
            plain(f"{wrong} ({count})") if count else "",
        )
    screen.print(classes)
    if len(hardest) > _MAX_SHOWN_CLASSES:
        screen.print(f"… and {len(hardest) - _MAX_SHOWN_CLASSES} easier classes; --json FILE writes all of them")
