"""A run's curves as SVG, with colours taken from the surrounding page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lakeclip.evaluation.forgetting import Forgetting
from lakeclip.evaluation.registry import EVALUATIONS
from lakeclip.report.curves import Axis, Curves, axes_of, smooth, thin

#: Placeholder colours that matplotlib draws with; CSS variables of the page replace them.
_INK, _FAINT = "#010203", "#040506"
_SERIES = tuple(f"#0a0b{16 + i:02x}" for i in range(10))
#: Number of lines that the page has colours for.
MAX_SERIES = len(_SERIES)
#: A chart is not wide enough to show more.
_MAX_POINTS = 600
_VARIABLES = {
    _INK: "var(--muted)",
    _FAINT: "var(--line)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES, start=1)},
}


@dataclass(frozen=True)
class Line:
    """One curve: a metric of the run, its label, and its style.

    Attributes:
        series: number of its colour, from 1.
        is_noisy: draw a moving average, and the points faintly behind it.
        is_one_of_many: draw only the moving average, as the points of several lines would hide one another.
    """

    metric: str
    label: str
    series: int
    is_dashed: bool = False
    is_noisy: bool = False
    is_one_of_many: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart of the report: of shares or of any numbers; large, or small beside others."""

    title: str
    lines: tuple[Line, ...]
    is_share: bool = False
    is_minor: bool = False


class View(NamedTuple):
    """A panel over one axis: an <svg> element that is safe to embed; "" without values."""

    axis: Axis
    svg: str


@dataclass(frozen=True)
class Chart:
    """A drawn panel.

    Attributes:
        lines: the lines that have values; the page writes the legend.
        latest: last value of each line, as text.
        views: the panel over each axis; the page shows one of them.
        summary: description of the chart for screen readers.
    """

    title: str
    lines: tuple[Line, ...]
    latest: tuple[str, ...]
    views: tuple[View, ...]
    summary: str
    is_minor: bool


_VALIDATION_PANELS = (
    Panel("Loss", (Line("train/loss", "training", 1, is_noisy=True), Line("val/loss", "validation", 2))),
    Panel(
        "Retrieval on the validation split",
        (
            Line("val/image_to_text_R@1", "image → text, R@1", 1),
            Line("val/text_to_image_R@1", "text → image, R@1", 2),
            Line("val/image_to_text_R@5", "image → text, R@5", 1, is_dashed=True),
            Line("val/text_to_image_R@5", "text → image, R@5", 2, is_dashed=True),
        ),
        is_share=True,
    ),
)
_FURTHER_PANELS = (
    Panel("Scores on the data to keep", (Line("val/kept_top1", "zero-shot top-1", 1),), is_share=True),
    Panel("Learning rate", (Line("train/lr", "learning rate", 3),), is_minor=True),
    Panel("Inverse temperature", (Line("train/logit_scale", "exp(logit_scale)", 3),), is_minor=True),
    Panel("Samples per second", (Line("train/samples_per_second", "samples/s", 3, is_noisy=True),), is_minor=True),
)


def draw_charts(curves: Curves) -> list[Chart]:
    """Draw the panels that a run has values for, over steps and, if the run recorded it, over wall-clock time."""
    return draw_panels((*_VALIDATION_PANELS, _evaluation_panel(), *_FURTHER_PANELS), axes_of(curves))


def _evaluation_panel() -> Panel:
    """Make the panel of the scores while training, with a line for every registered curve."""
    curves = [
        (score, label, "labels" not in evaluation.needs)
        for evaluation in EVALUATIONS.values()
        for score, label in evaluation.curves.items()
    ]
    lines = tuple(
        Line(f"eval/{score}", label, index % MAX_SERIES + 1, is_dashed=is_dashed or index >= MAX_SERIES)
        for index, (score, label, is_dashed) in enumerate(curves)
    )
    return Panel("Scores while training", lines, is_share=True)


def draw_panels(panels: Sequence[Panel], axes: Sequence[tuple[Axis, Curves]]) -> list[Chart]:
    """Draw the panels that there are values for.

    Args:
        axes: the same curves over each axis. The first axis has all of them; a later one may lack some.
    """
    return [chart for panel in panels if (chart := _chart(panel, axes)) is not None]


def draw_forgetting(forgetting: Forgetting) -> Chart:
    """Draw both scores over the share of the new weights."""
    panel = Panel(
        "Interpolation between old and new weights",
        (Line("new", "new data, R@1", 1), Line("kept", "data to keep, top-1", 2)),
        True,
    )
    curves: Curves = {
        name: [(round(100 * mix.share), getattr(mix, name)) for mix in forgetting.mixes] for name in ("new", "kept")
    }
    chart = _chart(panel, [(Axis("mix", "", "new weights, %"), curves)])
    assert chart is not None
    return chart


def _chart(panel: Panel, axes: Sequence[tuple[Axis, Curves]]) -> Chart | None:
    (first, curves), *_ = axes
    lines = tuple(line for line in panel.lines if curves.get(line.metric))
    if not lines:
        return None
    latest = tuple(_format(curves[line.metric][-1][1], is_share=panel.is_share) for line in lines)
    end = max(curves[line.metric][-1][0] for line in lines)
    summary = f"{panel.title} up to {first.label} {end:,}: " + "; ".join(
        f"{line.label} {_format(curves[line.metric][0][1], is_share=panel.is_share)} at the start, {last} at the end"
        for line, last in zip(lines, latest, strict=True)
    )
    views = tuple(
        View(axis, _draw(panel, lines, axis, points) if any(points.get(line.metric) for line in lines) else "")
        for axis, points in axes
    )
    return Chart(panel.title, lines, latest, views, summary, panel.is_minor)


def _draw(panel: Panel, lines: Sequence[Line], axis: Axis, curves: Curves) -> str:
    slug = re.sub(r"\W+", "-", f"{panel.title} {axis.key}".lower())
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": slug,
            "font.size": 11,
            "axes.edgecolor": _FAINT,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "grid.color": _FAINT,
        }
    ):
        figure = Figure(figsize=(3.7, 2.3) if panel.is_minor else (5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            if points := curves.get(line.metric):
                _draw_line(axes, line, points)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="y", linewidth=0.8)
        axes.tick_params(length=0, pad=6)
        # Steps and pairs are integers; times need not be.
        axes.xaxis.set_major_locator(MaxNLocator(4 if panel.is_minor else 5, integer=axis.key != "time"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x == round(x) else f"{x:g}"))
        axes.yaxis.set_major_locator(MaxNLocator(4 if panel.is_minor else 5))
        axes.set_xlabel(axis.label, color=_INK)
        axes.margins(x=0.02)
        if panel.is_share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        if panel.is_share or panel.is_minor:
            axes.set_ylim(bottom=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), slug)


def _draw_line(axes: mpl.axes.Axes, line: Line, points: list[tuple[float, float]]) -> None:
    colour = _SERIES[line.series - 1]
    points = thin(points, _MAX_POINTS)
    if line.is_noisy and len(points) > 20:
        if not line.is_one_of_many:
            axes.plot(*np.array(points).T, color=colour, linewidth=0.8, alpha=0.35)
        points = smooth(points, max(5, len(points) // 25))
    dashes = (0, (4, 2)) if line.is_dashed else "solid"
    marker = "o" if len(points) <= 12 else None
    axes.plot(*np.array(points).T, color=colour, linewidth=2, linestyle=dashes, marker=marker, markersize=4)


def _format(value: float, *, is_share: bool) -> str:
    if is_share:
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _for_page(svg: str, slug: str) -> str:
    """Return the bare <svg> element, with the page's colours, and with ids unique among the charts."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{slug}-", svg)
    # The page sets the width; the view box keeps the aspect ratio.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
