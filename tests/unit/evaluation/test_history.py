from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.evaluation.history import read_curves, smooth

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
    ]  # the resumed run logged step 9 again; nan and inf are left out
    assert curves["train/lr"] == [(9, 0.001), (19, 0.002), (29, 0.001), (39, 0.0)]
    assert curves["val/loss"] == [(19, 3.9), (39, 3.1)]


@pytest.mark.parametrize("content", [None, "", "step,epoch\n", "no,steps\n1,2\n", "step,a\nx,1\n"])
def test_nothing_to_read_is_no_curve(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "metrics.csv"
    if content is not None:
        file.write_text(content)
    assert read_curves(file).get("train/loss") is None


def test_a_line_that_was_cut_off_is_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss\n1,2.5\n2")
    assert read_curves(file) == {"train/loss": [(1, 2.5)]}


def test_smoothing_keeps_steps_and_a_constant() -> None:
    assert smooth([(1, 2.0), (3, 2.0), (9, 2.0)], 5) == [(1, 2.0), (3, 2.0), (9, 2.0)]
    assert smooth([(1, 0.0), (2, 3.0), (3, 6.0)], 3) == [(1, 1.5), (2, 3.0), (3, 4.5)]
