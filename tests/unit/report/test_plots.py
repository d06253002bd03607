"""Plots of every result in every format; equal results give equal files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from lakeclip.errors import OutputError
from lakeclip.evaluation.calibration import compute_calibration
from lakeclip.evaluation.probe import ProbeResult
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import MAX_CURVE_K, retrieval_metrics
from lakeclip.evaluation.robustness import RobustnessResult, Shift
from lakeclip.evaluation.zeroshot import ZeroShotResult
from lakeclip.report.plots import plot_probe, plot_retrieval, plot_robustness, plot_zero_shot, save_plot

TEMPLATES = TemplateSet("t", "", ("{}",))


def zero_shot_plot(num_classes: int = 3) -> Figure:
    confusion = np.eye(num_classes, dtype=np.int64) * 3
    confusion[0, 1] = 3
    names = tuple(f"class ${number}$" for number in range(num_classes))
    calibration = compute_calibration(torch.tensor([0.9, 0.5, 0.2]), torch.tensor([True, True, False]))
    return plot_zero_shot(ZeroShotResult(names, confusion, 0.75, 1.0, TEMPLATES, calibration=calibration))


def retrieval_plot() -> Figure:
    torch.manual_seed(0)
    images = F.normalize(torch.randn(30, 8), dim=1)
    return plot_retrieval(retrieval_metrics(images, images + 0.3 * torch.randn(30, 8), torch.arange(30)))


def probe_plot(few: dict[int, float] | None = None) -> Figure:
    few = {1: 0.3, 4: 0.5} if few is None else few
    return plot_probe(ProbeResult(0.7, 0.1, 0.1, ((0.01, 0.5), (0.1, 0.6), (1.0, 0.55)), few, 100, 50, 10))


def robustness_plot(*shifts: Shift) -> Figure:
    scores = {"jpeg": (0.6, 0.4), "contrast": (0.8, 0.2)}
    return plot_robustness(RobustnessResult(0.8, scores, (1, 5), shifts, 10, 2, 0, 0, TEMPLATES))


PLOTS = (zero_shot_plot, retrieval_plot, probe_plot, robustness_plot)
#: Each plot in one format, and each format; all others are slow.
_QUICK = {(".png", zero_shot_plot), (".svg", retrieval_plot), (".pdf", robustness_plot), (".PNG", probe_plot)}


@pytest.mark.parametrize(
    ("suffix", "plot"),
    [
        (suffix, plot) if (suffix, plot) in _QUICK else pytest.param(suffix, plot, marks=pytest.mark.slow)
        for suffix in (".png", ".svg", ".pdf", ".PNG")
        for plot in PLOTS
    ],
)
def test_every_plot_in_every_format(plot: type, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"plot{suffix}"
    save_plot(plot(), path)
    content = path.read_bytes()
    assert content.startswith({".svg": b"<?xml", ".pdf": b"%PDF"}.get(suffix, b"\x89PNG"))
    if suffix == ".png":
        with Image.open(path) as image:
            assert len(image.convert("L").getcolors() or []) > 10
    save_plot(plot(), path)
    assert path.read_bytes() == content


def test_zero_shot_plot_shows_bins_and_classes() -> None:
    left, right = zero_shot_plot().axes
    heights = [bar.get_height() for bar in left.patches]
    assert len(heights) == 15
    assert heights[13] == heights[7] == 1.0
    assert heights[2] == 0
    assert sorted(bar.get_width() for bar in right.patches) == [0.5, 1.0, 1.0]
    assert right.get_yticklabels()[0].get_text() == r"class \$0\$"


def test_many_classes_become_a_curve() -> None:
    assert not zero_shot_plot(41).axes[1].patches
    assert zero_shot_plot(40).axes[1].patches


def test_retrieval_plot_shows_both_directions_and_chance() -> None:
    (axes,) = retrieval_plot().axes
    curves = [line for line in axes.lines if len(line.get_xdata()) == MAX_CURVE_K]  # type: ignore[arg-type]
    assert len(curves) == 3
    chance = curves[-1].get_ydata()
    assert chance[0] == pytest.approx(1 / 30)  # type: ignore[index]
    assert chance[-1] == 1  # type: ignore[index]


def test_optional_panels_are_omitted() -> None:
    assert [len(probe_plot().axes), len(probe_plot({}).axes)] == [2, 1]
    assert len(robustness_plot(Shift("lakes/sketches", 0.3, 0.7, 9)).axes) == 2
    assert len(robustness_plot().axes) == 1


def test_unwritable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save_plot(probe_plot(), tmp_path / "none" / "plot.png")
