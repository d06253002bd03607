"""`lakeclip evaluate probe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from lakeclip.cli.output import console, plain, plottable, save, writable
from lakeclip.evaluation.run import EncodeConfig, evaluate_probe

if TYPE_CHECKING:
    from lakeclip.evaluation.probe import ProbeResult

_ADVICE = (
    "more images to score and to train on, if there are few; lakeclip inspect shows the labels; "
    "lakeclip finetune --from NAME starts from a model that knows images (`lakeclip weights` lists names)"
)


@dataclass(frozen=True)
class Probe:
    """Fit a linear classifier on the model's frozen image features, and score it on other images."""

    checkpoint: str
    """A run folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER or huggingface:ORG/NAME."""
    lake: str
    """Deep Lake dataset with images and labels to train the classifier on."""
    test_lake: str
    """Deep Lake dataset with images and labels to score it on."""
    label_column: str
    """Column with the labels in both lakes: texts or integers."""
    query: str | None = None
    """Rows of --lake to train on: the WHERE clause of a Deep Lake query."""
    classes: str | None = None
    """Class names: a file with one per line, or cat,dog,… Default: the labels of --lake."""
    few: tuple[int, ...] = ()
    """Also train few-shot classifiers with this many examples per class, e.g. --few 1 4 16; each is the mean of three
    draws."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    """Also write all figures to this file."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Plot the sweep over the regularization, and the few-shot scores: a .png, .svg or .pdf file."""
    encode: Annotated[EncodeConfig, tyro.conf.arg(name="")] = field(default_factory=EncodeConfig)


def run_probe(flags: Probe) -> None:
    """Run `lakeclip evaluate probe`."""
    json_file, plot = writable(flags.json_file), plottable(flags.plot)
    result = evaluate_probe(
        flags.checkpoint,
        flags.lake,
        flags.test_lake,
        label_column=flags.label_column,
        query=flags.query,
        classes=flags.classes,
        few=flags.few,
        encode=flags.encode,
    )
    content = {"checkpoint": flags.checkpoint, "lake": flags.lake, "test_lake": flags.test_lake, **result.to_json()}
    save(json_file, content)
    if plot is not None:
        from lakeclip.report.plots import plot_probe, save_plot

        save_plot(plot_probe(result), plot)
    _show(result)


def _show(result: ProbeResult) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    low, high = result.standing.interval
    if result.standing.is_guessing:
        text = (
            f"the features do no better than always predicting the most frequent class: top-1 is {result.standing}\n"
            f"  next:  {_ADVICE}\n"
        )
        console().print(plain(text), soft_wrap=True)
    table.add_row("top-1", f"[bold]{result.top1:.1%}[/]", f"always the most frequent class: {result.chance:.1%}")
    table.add_row("", "", f"95% interval {low:.1%} to {high:.1%}")
    for number, share in result.few.items():
        left_out = result.few_left_out.get(number, 0)
        rest = f"without {left_out:,} of {result.num_classes:,} classes, which have fewer images" if left_out else ""
        table.add_row(f"{number} per class", "–" if isnan(share) else f"{share:.1%}", rest)
    table.add_row("images", f"{result.num_train:,} to train on, {result.num_test:,} to score")
    if result.num_single:
        table.add_row("", "", f"{result.num_single:,} of {result.num_classes:,} classes have one training image")
    if result.num_unseen:
        table.add_row(
            "", "", f"{result.num_unseen:,} to score are of classes without a training image: counted as wrong"
        )
    table.add_row(
        "1/C", f"{result.regularisation:.3g}", f"best of {len(result.sweep)} on a fifth of the training images"
    )
    console().print(table)
