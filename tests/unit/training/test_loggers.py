"""Contents of metrics.csv, also after an interruption."""

from __future__ import annotations

from pathlib import Path

from lakeclip.training.loggers import MetricsCSVLogger


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_buffered_rows_and_new_columns(tmp_path: Path) -> None:
    logger = MetricsCSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"loss": 3.0}, 0)
    assert not logger.path.exists()
    logger.save()
    logger.log_metrics({"loss": 2.0}, 1)
    logger.save()
    logger.log_metrics({"score": 0.5}, 1)
    logger.finalize("success")
    assert rows(logger.path) == ["loss,score,step", "3.0,,0", "2.0,,1", ",0.5,1"]


def test_resume_drops_rows_that_are_logged_again_and_torn_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("loss,score,step\n3.0,,0\n2.0,,1\n,0.5,1\n1.0,,2\n0.7")
    logger = MetricsCSVLogger(path, reached=2)
    assert rows(path) == ["loss,score,step", "3.0,,0", "2.0,,1", ",0.5,1"]
    # The validation that follows the checkpoint runs again.
    logger.log_metrics({"score": 0.5}, 1)
    logger.log_metrics({"loss": 1.0}, 2)
    logger.save()
    assert rows(path)[3:] == [",0.5,1", "1.0,,2"]
    assert MetricsCSVLogger(path).path.exists() is False, "a new run has no file yet"
