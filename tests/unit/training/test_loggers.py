"""metrics.csv: what is in it after a cut."""

from __future__ import annotations

from pathlib import Path

from lakeclip.training.watching.loggers import Curves


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_new_columns_and_rows_that_are_still_in_memory(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "metrics.csv")
    curves.log_metrics({"loss": 3.0}, 0)
    assert not curves.path.exists()
    curves.save()
    curves.log_metrics({"loss": 2.0}, 1)
    curves.save()
    curves.log_metrics({"score": 0.5}, 1)
    curves.finalize("success")
    assert rows(curves.path) == ["loss,score,step", "3.0,,0", "2.0,,1", ",0.5,1"]


def test_a_run_that_goes_on_drops_what_is_made_again_and_what_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("loss,score,step\n3.0,,0\n2.0,,1\n,0.5,1\n1.0,,2\n0.7")
    curves = Curves(path, reached=2)
    assert rows(path) == ["loss,score,step", "3.0,,0", "2.0,,1", ",0.5,1"]
    # The validation before which the checkpoint stood is made again.
    curves.log_metrics({"score": 0.5}, 1)
    curves.log_metrics({"loss": 1.0}, 2)
    curves.save()
    assert rows(path)[3:] == [",0.5,1", "1.0,,2"]
    assert Curves(path).path.exists() is False, "a run that begins anew has none"
