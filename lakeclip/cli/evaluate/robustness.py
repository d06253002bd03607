"""`lakeclip evaluate robustness`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, plottable, save, writable
from lakeclip.evaluation.run import EncodeConfig, evaluate_robustness

if TYPE_CHECKING:
    from lakeclip.evaluation.robustness import RobustnessResult


@dataclass(frozen=True)
class Robustness:
    """Score zero-shot on a lake's images, on corrupted copies of them (noise, blur, JPEG, …), and on other lakes."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER or huggingface:ORG/NAME."""
    lake: str
    """Deep Lake dataset with images and labels."""
    label_column: str
    """Column with the labels: texts, or integers together with --classes. The lakes of --shifted need it, too."""
    query: str | None = None
    """Rows of --lake to score: the WHERE clause of a Deep Lake query. By default each is scored 46 times."""
    shifted: tuple[str, ...] = ()
    """Other lakes with the same labels, for example sketches of the same things."""
    corruptions: tuple[str, ...] = ()
    """Corruptions to apply, e.g. --corruptions jpeg "gaussian noise". Default: all."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities of the corruptions, 1 (weakest) to 5."""
    templates: str = "simple"
    """Prompts for the class names: the name of a set, or a file."""
    classes: str | None = None
    """Class names to choose from: a file with one per line, or cat,dog,… Default: the labels in the column."""
    image_column: str | None = None
    """Column with the encoded images in all lakes. Default: inferred from names and types."""
    seed: int = 0
    """Seed of the random parts of the corruptions."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write all figures to this file."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Plot top-1 over severity: a .png, .svg or .pdf file."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)


def run_robustness(flags: Robustness) -> None:
    """Run `lakeclip evaluate robustness`."""
    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    result = evaluate_robustness(
        flags.checkpoint,
        flags.lake,
        label_column=flags.label_column,
        query=flags.query,
        shifted=flags.shifted,
        corruptions=flags.corruptions,
        severities=flags.severities,
        templates=flags.templates,
        classes=flags.classes,
        image_column=flags.image_column,
        seed=flags.seed,
        encode=flags.encode,
    )
    content = {"checkpoint": flags.checkpoint, "lake": flags.lake, "seed": flags.seed, **result.to_json()}
    save(json_file, content)
    if plot is not None:
        from lakeclip.report.plots import plot_robustness, save_plot

        save_plot(plot_robustness(result), plot)
    _show(result)


def _show(result: RobustnessResult) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("top-1 at severity")
    for heading in (*map(str, result.severities), "mean"):
        table.add_column(heading, justify="right")
    for name, scores in result.top1.items():
        mean = sum(scores) / len(scores)
        table.add_row(name, *(f"{score:.1%}" for score in scores), f"[bold]{mean:.1%}[/]")
    screen = console()
    screen.print(table)
    summary = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    summary.add_row("clean", f"[bold]{result.clean:.1%}[/]", f"chance {1 / result.num_classes:.1%}")
    summary.add_row("mean over corruptions", f"[bold]{result.mean:.1%}[/]", _relative_drop(result.mean_relative_drop))
    for shift in result.shifts:
        details = f"{shift.num_samples:,} images; {shift.clean:.1%} on the clean images of the same classes"
        summary.add_row(plain(shift.name), f"[bold]{shift.top1:.1%}[/]", details)
    summary.add_row("images", f"{result.num_samples:,}")
    if result.num_unlabelled:
        summary.add_row("", "", f"{result.num_unlabelled:,} without a label, skipped")
    if result.num_undecodable:
        summary.add_row("", "", f"{result.num_undecodable:,} that could not be decoded, skipped")
    screen.print(summary)


def _relative_drop(share: float) -> str:
    return f"relative drop from clean {share:.1%}" if share >= 0 else f"relative gain over clean {-share:.1%}"
