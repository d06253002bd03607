"""Curves of a run: reading metrics.csv, smoothing, and conversion to time and pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.report.curves import CLOCK, Curves, axes_of, over_pairs, over_time, read_curves, smooth, thin, time_axis

METRICS = """epoch,step,train/loss,train/lr,val/loss
0,9,4.5,0.001,
0,19,3.5,0.002,
0,19,,,3.9
1,29,nan,0.001,
1,9,4.4,,
,,,,
1,39,inf,0.0,3.1
"""


def test_one_curve_per_metric(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(METRICS)
    curves = read_curves(file)
    assert curves["train/loss"] == [
        (9, 4.4),
        (19, 3.5),
    ]  # the resumed run logged step 9 again; nan and inf are skipped
    assert curves["train/lr"] == [(9, 0.001), (19, 0.002), (29, 0.001), (39, 0.0)]
    assert curves["val/loss"] == [(19, 3.9), (39, 3.1)]


@pytest.mark.parametrize("content", [None, "", "step,epoch\n", "no,steps\n1,2\n", "step,a\nx,1\n"])
def test_files_without_metrics_give_no_curves(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "metrics.csv"
    if content is not None:
        file.write_text(content)
    assert read_curves(file).get("train/loss") is None


def test_truncated_last_line_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss\n1,2.5\n2")
    assert read_curves(file) == {"train/loss": [(1, 2.5)]}


def test_smoothing_keeps_steps_and_a_constant() -> None:
    assert smooth([(1, 2.0), (3, 2.0), (9, 2.0)], 5) == [(1, 2.0), (3, 2.0), (9, 2.0)]
    assert smooth([(1, 0.0), (2, 3.0), (3, 6.0)], 3) == [(1, 1.5), (2, 3.0), (3, 4.5)]


def test_times_between_clock_readings_are_interpolated() -> None:
    curves: Curves = {CLOCK: [(0, 10.0), (10, 30.0)], "val/loss": [(5, 3.0), (10, 2.0)]}
    assert over_time(curves)["val/loss"] == [(20.0, 3.0), (30.0, 2.0)]
    assert over_time(curves, 10.0)["val/loss"] == [(2.0, 3.0), (3.0, 2.0)]
    assert over_time({"val/loss": [(5, 3.0)]}) == {}
    assert [axis.key for axis, _ in axes_of(curves)] == ["steps", "time"]
    assert [axis.key for axis, _ in axes_of({"val/loss": [(5, 3.0)]})] == ["steps"]


def test_time_is_monotonic() -> None:
    clock = over_time({CLOCK: [(0, 1.0), (1, 9.0), (2, 5.0), (3, 12.0)], "a": [(step, 0.0) for step in range(4)]})["a"]
    assert [x for x, _ in clock] == [1.0, 9.0, 9.0, 12.0]


def test_first_step_ends_after_the_first_batch_of_pairs() -> None:
    assert over_pairs({"a": [(0, 1.0), (9, 2.0)]}, 64.0) == {"a": [(64.0, 1.0), (640.0, 2.0)]}


@pytest.mark.parametrize(("seconds", "unit"), [(0, "seconds"), (179, "seconds"), (180, "minutes"), (10_800, "hours")])
def test_unit_of_time_depends_on_the_duration(seconds: float, unit: str) -> None:
    assert time_axis(seconds)[0].label == unit


def test_thin_keeps_the_mean_and_the_order() -> None:
    points = [(float(x), float(x % 7)) for x in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned == sorted(thinned)
    assert sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert thin(points, 1000) == points
