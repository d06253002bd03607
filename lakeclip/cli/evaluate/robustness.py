"""`lakeclip evaluate robustness`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, plottable, save, writable
from lakeclip.cli.report import Effort, load_model
from lakeclip.errors import ConfigError

if TYPE_CHECKING:
    from lakeclip.evaluation.robustness import RobustnessResult


@dataclass(frozen=True)
class Robustness:
    """Zero-shot on a lake's images, on copies of them made worse (noise, blur, JPEG, …), and on other lakes."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    lake: str
    """Deep Lake dataset with images and labels."""
    label_column: str
    """Column with the labels: texts, or integers together with --classes. Of --shifted, too."""
    query: str | None = None
    """Which rows of --lake to score: the WHERE clause of a Deep Lake query. Each is scored 46 times."""
    shifted: tuple[str, ...] = ()
    """Other lakes with the same labels: sketches of the same things, say."""
    corruptions: tuple[str, ...] = ()
    """Only these, e.g. --corruptions jpeg "gaussian noise". Default: all."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Only these, 1 (least) to 5."""
    templates: str = "simple"
    """Sentences for the class names: a set's name or a file."""
    classes: str | None = None
    """Names to choose among: a file with one a line, or cat,dog,… Default: the labels that there are."""
    image_column: str | None = None
    """Column with the encoded images, in all lakes. Default: found by its name and type."""
    seed: int = 0
    """Of what is random in the copies."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write all figures to this file as well."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw top-1 by severity: a .png, .svg or .pdf file."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


def evaluate_robustness(flags: Robustness) -> None:
    """`lakeclip evaluate robustness`."""
    from lakeclip.evaluation.corruptions import CORRUPTIONS
    from lakeclip.evaluation.labels import parse_classes, read_labels
    from lakeclip.evaluation.prompts import find_templates
    from lakeclip.evaluation.remembered import remembered_classifiers
    from lakeclip.evaluation.robustness import robustness
    from lakeclip.lake.dataset import open_lake

    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    corruptions = tuple(dict.fromkeys(flags.corruptions)) or tuple(CORRUPTIONS)
    severities = tuple(sorted(set(flags.severities)))
    if unknown := [name for name in corruptions if name not in CORRUPTIONS]:
        raise ConfigError(f"there is no corruption {unknown[0]!r}", allowed=", ".join(CORRUPTIONS))
    if not severities or severities[0] < 1 or severities[-1] > 5:
        raise ConfigError(f"--severities {' '.join(map(str, flags.severities))} cannot be", allowed="some of 1 2 3 4 5")
    templates = find_templates(flags.templates)
    source = open_lake(flags.lake, flags.query, image_column=flags.image_column)
    labels = read_labels(
        source, flags.label_column, parse_classes(flags.classes) if flags.classes is not None else None
    )
    others = [open_lake(path, image_column=flags.image_column) for path in flags.shifted]
    shifted = [(other, read_labels(other, flags.label_column, labels.classes)) for other in others]
    model = load_model(flags.checkpoint, flags.effort)
    result = robustness(
        *model,
        source,
        labels,
        templates,
        corruptions=corruptions,
        severities=severities,
        shifted=shifted,
        seed=flags.seed,
        batch_size=flags.effort.batch_size,
        num_workers=flags.effort.num_workers,
        remembered=remembered_classifiers(),
    )
    content = {"checkpoint": flags.checkpoint, "lake": flags.lake, "seed": flags.seed, **result.to_json()}
    save(json_file, content)
    if plot is not None:
        from lakeclip.evaluation.pages.plots import plot_robustness, save_plot

        save_plot(plot_robustness(result), plot)
    _show_robustness(result)


def _show_robustness(result: RobustnessResult) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("top-1 at severity")
    for level in (*map(str, result.severities), "mean"):
        table.add_column(level, justify="right")
    for name, scores in result.top1.items():
        mean = sum(scores) / len(scores)
        table.add_row(name, *(f"{score:.1%}" for score in scores), f"[bold]{mean:.1%}[/]")
    screen = console()
    screen.print(table)
    summary = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    summary.add_row("clean", f"[bold]{result.clean:.1%}[/]", f"chance {1 / result.num_classes:.1%}")
    summary.add_row("mean of the copies", f"[bold]{result.mean:.1%}[/]", _drop(result.mean_relative_drop))
    for one in result.shifts:
        about = f"{one.num_samples:,} images; {one.clean:.1%} on the clean ones of its classes"
        summary.add_row(plain(one.name), f"[bold]{one.top1:.1%}[/]", about)
    summary.add_row("images", f"{result.num_samples:,}")
    if result.num_unlabelled:
        summary.add_row("", "", f"{result.num_unlabelled:,} more have no label and were left out")
    if result.num_undecodable:
        summary.add_row("", "", f"{result.num_undecodable:,} more could not be decoded and were left out")
    screen.print(summary)


def _drop(share: float) -> str:
    return f"{share:.1%} of the clean accuracy is lost" if share >= 0 else f"{-share:.1%} more than the clean accuracy"
