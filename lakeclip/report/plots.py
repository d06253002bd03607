"""Plots of results for papers and slides, as written by `lakeclip evaluate … --plot FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lakeclip.errors import OutputError
from lakeclip.evaluation.calibration import NUM_BINS
from lakeclip.evaluation.probe import ProbeResult
from lakeclip.evaluation.retrieval import Ranking, RetrievalResult
from lakeclip.evaluation.robustness import RobustnessResult
from lakeclip.evaluation.zeroshot import ZeroShotResult

#: Okabe and Ito's colours, distinguishable for colour-blind readers; wine replaces yellow, which is faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#000000", "#999999")
_INK, _FAINT = "#333333", "#DDDDDD"
#: With more classes the names are not readable, and a curve is drawn instead of bars.
_MAX_NAMED = 40
#: Typed as Any because matplotlib's stubs enumerate all settings.
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    # Makes SVG files reproducible.
    "svg.hashsalt": "lakeclip",
}


def plot_zero_shot(result: ZeroShotResult) -> Figure:
    """Plot the reliability diagram and the accuracy of each class, hardest first."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = _panels(figure, 2)
        _draw_reliability(left, result)
        _draw_classes(right, result)
        figure.suptitle(f"zero-shot top-1 {result.top1:.1%} among {len(result.classes)} classes")
    return figure


def plot_retrieval(result: RetrievalResult) -> Figure:
    """Plot R@k over k in both directions, with chance."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        (axes,) = _panels(figure, 1)
        directions = (("image → text", result.image_to_text), ("text → image", result.text_to_image))
        for (direction, ranking), colour in zip(directions, _COLOURS, strict=False):
            _draw_ranking(axes, direction, ranking, colour)
        cutoffs = np.arange(1, len(result.text_to_image.curve) + 1)
        chance = np.minimum(1, cutoffs / result.num_images)
        axes.plot(cutoffs, chance, color=_INK, linewidth=1, linestyle=":", label="chance, text → image")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
        axes.set(xlabel="k", ylabel="R@k", ylim=(0, 1.02))
        axes.set_title(f"retrieval among {result.num_images:,} images and {result.num_texts:,} captions")
        _in_percent(axes)
        axes.legend(loc="best")
    return figure


def plot_probe(result: ProbeResult) -> Figure:
    """Plot the sweep over the penalty and, if there are any, the few-shot scores."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10 if result.few else 6.4, 4.6), layout="constrained")
        axes = _panels(figure, 2 if result.few else 1)
        strengths, scores = zip(*result.sweep, strict=True)
        axes[0].semilogx(strengths, scores, color=_COLOURS[0], marker="o", markersize=4)
        axes[0].axvline(result.regularisation, color=_COLOURS[1], linestyle="--", label="selected")
        axes[0].set(xlabel="1/C", ylabel="top-1 on held-out training images", title="sweep over the L2 penalty")
        axes[0].legend(loc="best")
        if result.few:
            numbers = sorted(result.few)
            axes[1].plot(numbers, [result.few[number] for number in numbers], color=_COLOURS[0], marker="o")
            axes[1].axhline(result.top1, color=_COLOURS[1], label=f"all {result.num_train:,} images")
            axes[1].axhline(result.chance, color=_INK, linestyle=":", label="most frequent class")
            axes[1].set_xscale("log", base=2)
            axes[1].set_xticks(numbers, [str(number) for number in numbers])
            axes[1].set(xlabel="examples per class", ylabel="top-1", title="few-shot", ylim=(0, 1.02))
            axes[1].legend(loc="best")
        for panel in axes:
            _in_percent(panel)
        figure.suptitle(f"linear probe: top-1 {result.top1:.1%}")
    return figure


def plot_robustness(result: RobustnessResult) -> Figure:
    """Plot top-1 over severity for each corruption and, if there are any, the scores on other lakes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10 if result.shifts else 6.8, 4.8), layout="constrained")
        axes = _panels(figure, 2 if result.shifts else 1)
        for number, (name, scores) in enumerate(result.top1.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            dashes = "-" if number < len(_COLOURS) else "--"
            axes[0].plot(
                (0, *result.severities), (result.clean, *scores), dashes, color=colour, marker="o", ms=4, label=name
            )
        axes[0].axhline(1 / result.num_classes, color=_INK, linewidth=1, linestyle=":", label="chance")
        axes[0].set_xticks((0, *result.severities), ["clean", *map(str, result.severities)])
        axes[0].set(xlabel="severity", ylabel="zero-shot top-1", title="corrupted copies of the images")
        axes[0].set_ylim(bottom=0)
        axes[0].legend(fontsize="small", ncols=2)
        _in_percent(axes[0])
        if result.shifts:
            x = np.arange(len(result.shifts))
            for offset, name, colour in ((-0.2, "clean", _COLOURS[0]), (0.2, "top1", _COLOURS[1])):
                shares = [getattr(shift, name) for shift in result.shifts]
                label = "clean images of the same classes" if name == "clean" else "images of this lake"
                axes[1].bar(x + offset, shares, 0.4, color=colour, label=label)
            axes[1].set_xticks(x, [Path(shift.name.rstrip("/")).name for shift in result.shifts])
            axes[1].set(ylabel="zero-shot top-1", title="other lakes", xlim=(-0.8, len(x) - 0.2))
            axes[1].set_ylim(0, 1.3 * max(max(shift.top1, shift.clean) for shift in result.shifts) or 1)
            axes[1].legend(fontsize="small")
            _in_percent(axes[1])
        figure.suptitle(f"clean {result.clean:.1%}, mean over corruptions {result.mean:.1%}")
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """Write a plot in the format of the file's suffix: .png, .svg or .pdf.

    Raises:
        OutputError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    # Without a date the file is reproducible.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix]
    try:
        with mpl.rc_context(_STYLE):
            figure.savefig(path, format=suffix[1:], dpi=150, metadata=metadata)
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None


def _panels(figure: Figure, number: int) -> list[Axes]:
    return [figure.add_subplot(1, number, index) for index in range(1, number + 1)]


def _draw_reliability(axes: Axes, result: ZeroShotResult) -> None:
    axes.plot((0, 1), (0, 1), color=_INK, linewidth=1, linestyle="--", label="perfect calibration")
    calibration = result.calibration
    if calibration is not None:
        edges = np.arange(NUM_BINS) / NUM_BINS
        shares = [bin_.accuracy for bin_ in calibration.bins]
        axes.bar(edges, shares, 1 / NUM_BINS, align="edge", color=_COLOURS[0], edgecolor="white", label="accuracy")
        counts = np.array([bin_.num_answers for bin_ in calibration.bins])
        axes.plot(edges + 0.5 / NUM_BINS, counts / counts.sum(), color=_COLOURS[1], marker=".", label="share of images")
        axes.set_title(f"calibration error {calibration.error:.1%}")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", fontsize="small")
    _in_percent(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))


def _draw_classes(axes: Axes, result: ZeroShotResult) -> None:
    scores = [(score.accuracy, score.name) for score in result.per_class if score.accuracy is not None]
    scores.sort()
    shares = [share for share, _ in scores]
    axes.set_title(f"accuracy per class, mean {result.mean_per_class:.1%}")
    if len(scores) > _MAX_NAMED:
        axes.fill_between(np.arange(len(scores)), shares, color=_COLOURS[0], alpha=0.4, step="mid")
        axes.set(xlabel="classes, hardest first", ylabel="accuracy", ylim=(0, 1))
        _in_percent(axes)
        return
    axes.barh(np.arange(len(scores)), shares, color=_COLOURS[0])
    # matplotlib would render text between $ signs as a formula.
    names = [name.replace("$", r"\$") for _, name in scores]
    axes.set_yticks(np.arange(len(scores)), names, fontsize=9 if len(scores) <= 20 else 6)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy", xlim=(0, 1))
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))


def _draw_ranking(axes: Axes, direction: str, ranking: Ranking, colour: str) -> None:
    label = f"{direction}: mAP {ranking.mean_average_precision:.1%}, median rank {ranking.median_rank:,g}"
    axes.plot(np.arange(1, len(ranking.curve) + 1), ranking.curve, color=colour, linewidth=2, label=label)
    for k, share in ranking.recall.items():
        axes.plot(k, share, "o", color=colour, markersize=5)


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))


def _percent(share: float, _: int | None) -> str:
    return f"{100 * share:g}%"
