"""`lakeclip evaluate probe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plottable, save, writable
from lakeclip.cli.report import Effort, load_model


@dataclass(frozen=True)
class Probe:
    """Fit a linear classifier on the model's image features (its tower is frozen), and score it on other images."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    lake: str
    """Deep Lake dataset with images and labels to train the classifier on."""
    test_lake: str
    """… and one to score it on."""
    label_column: str
    """Column with the labels, in both: texts, or integers together with --classes."""
    query: str | None = None
    """Which rows of --lake to train on: the WHERE clause of a Deep Lake query."""
    classes: str | None = None
    """Names of the classes: a file with one a line, or cat,dog,… Default: the labels of --lake."""
    few: tuple[int, ...] = ()
    """Also with so many examples a class, e.g. --few 1 4 16: the mean of three draws."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Write all figures to this file as well."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw the sweep, and the few examples: a .png, .svg or .pdf file."""
    effort: Annotated[Effort, tyro.conf.arg(name="")] = field(default_factory=Effort)


def evaluate_probe(flags: Probe) -> None:
    """`lakeclip evaluate probe`."""
    from lakeclip.evaluation.labelled import encode_labelled
    from lakeclip.evaluation.labels import parse_classes, read_labels
    from lakeclip.evaluation.probe import linear_probe
    from lakeclip.lake.dataset import open_lake

    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    train, test = open_lake(flags.lake, flags.query), open_lake(flags.test_lake)
    classes = parse_classes(flags.classes) if flags.classes is not None else None
    labels = read_labels(train, flags.label_column, classes)
    model = load_model(flags.checkpoint, flags.effort)
    sides = []
    # The names of the first are those of the second; its labels may be fewer.
    for source, known in ((train, labels), (test, read_labels(test, flags.label_column, labels.classes))):
        images = encode_labelled(
            model.model,
            model.transform,
            source,
            known,
            batch_size=flags.effort.batch_size,
            num_workers=flags.effort.num_workers,
        )
        sides += [images.features, images.targets]
    result = linear_probe(*sides, few=flags.few)
    save(
        json_file,
        {"checkpoint": flags.checkpoint, "lake": flags.lake, "test_lake": flags.test_lake, **result.to_json()},
    )
    if plot is not None:
        from lakeclip.evaluation.pages.plots import plot_probe, save_plot

        save_plot(plot_probe(result), plot)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("top-1", f"[bold]{result.top1:.1%}[/]", f"the most frequent class would get {result.chance:.1%}")
    for number, share in result.few.items():
        table.add_row(f"{number} a class", f"{share:.1%}")
    table.add_row("images", f"{result.num_train:,} to train on, {result.num_test:,} to score")
    table.add_row("1/C", f"{result.regularisation:.3g}", f"the best of {len(result.sweep)} on a fifth of the former")
    console().print(table)
