"""Loggers of a run: metrics.csv always, and on request TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import csv
import io
import json
import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lakeclip.errors import ConfigError, OutputError
from lakeclip.files import atomic_write

#: Default project or experiment name in a tracker.
_PROJECT = "lakeclip"
#: Number of rows of metrics.csv that are buffered in memory.
_BUFFER_ROWS = 50
#: File with the run ids that the trackers assigned, so that a resumed run continues the same curves.
TRACKER_IDS = "tracked.json"


def check_trackers(names: Sequence[str]) -> None:
    """Check that the requested trackers are installed.

    Raises:
        ConfigError: a tracker is not installed.
    """
    for name in names:
        if name in _OTHERS and find_spec(name) is None:
            raise ConfigError(
                f"{name} was requested (--track {' '.join(names)}), but it is not installed",
                allowed="tensorboard, which is installed with lakeclip",
                next_step=f"pip install {_OTHERS[name].packages}",
            )


def make_loggers(names: Sequence[str], folder: Path, settings: dict[str, Any], *, reached: int = 0) -> list[Logger]:
    """Create and start the Lightning loggers of a run; the first one writes metrics.csv.

    Server, project and key come from the tracker's own variables: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE,
    WANDB_API_KEY, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME. None of them is saved with the run.

    Args:
        names: trackers besides metrics.csv.
        folder: folder of the run.
        settings: the run's configuration, for the trackers that show it.
        reached: steps that the run has completed; later rows of metrics.csv are dropped.

    Raises:
        OutputError: a tracker refuses to start the run.
    """
    loggers: list[Logger] = [MetricsCSVLogger(folder / "metrics.csv", reached)]
    if "tensorboard" in names:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    run_ids = _read_run_ids(folder)
    for name in names:
        if name in _OTHERS:
            try:
                logger = _OTHERS[name].make(folder, run_ids.get(name))
                if is_main():
                    run_id = logger.experiment.id if name == "wandb" else logger.run_id  # type: ignore[attr-defined]
                    if name not in run_ids:
                        # A resumed run may have changed settings, which MLflow would refuse.
                        logger.log_hyperparams(settings)
            except Exception as error:  # Each tracker raises exceptions of its own.
                raise OutputError(
                    f"{name} refuses to start the run (--track {' '.join(names)})",
                    found=" ".join(str(error).split())[:300],
                    next_step=_OTHERS[name].next_step,
                ) from None
            if is_main():
                run_ids[name] = run_id
                (folder / TRACKER_IDS).write_text(json.dumps(run_ids) + "\n", encoding="utf-8")
            loggers.append(logger)
    return loggers


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Finish the run in the trackers, so that the next run of this process gets one of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_main():
            logger.experiment.finish()


def is_main() -> bool:
    """Return True in the run's first process. Works from the environment, before the process group is initialized."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


class MetricsCSVLogger(Logger):
    """Logger that writes metrics.csv: `step` and a column per metric. A kill, full disk or resume loses no row.

    Lightning's CSVLogger deletes the file of an earlier segment of the run, and rewrites it in place for every new
    column.

    Args:
        path: the CSV file.
        reached: steps that the run has completed. Later rows of an existing file are dropped, as they are logged again.
    """

    def __init__(self, path: Path, reached: int = 0) -> None:
        super().__init__()
        self.path = path
        self._new: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._logged: list[set[str]] = []
        self._logged_step = -1
        if is_main():
            kept = [row for row in self._rows() if int(row["step"]) < reached]
            self._write(kept)
            # A validation at that step may be in the file already, and will run again.
            self._logged = [_metrics(row) for row in kept if int(row["step"]) == reached - 1]
            self._logged_step = reached - 1

    @property
    def name(self) -> str:
        """Empty: a run has only one such file."""
        return ""

    @property
    def version(self) -> str:
        """Empty, as `name`."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore hyperparameters: they are in the run's config.yaml."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        if not is_main():
            return
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        if step == self._logged_step and {*values} - {"step"} in self._logged:
            return
        self._new.append({**values, "step": step or 0})
        if len(self._new) >= _BUFFER_ROWS:
            self.save()

    def save(self) -> None:
        """Write all buffered rows to the disk."""
        if not self._new:
            return
        if set().union(*self._new) <= set(self._columns):
            text = io.StringIO()
            csv.DictWriter(text, self._columns).writerows(self._new)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
            self._new = []
        else:
            self._write([*self._rows(), *self._new])

    def finalize(self, status: str) -> None:
        """Write the last rows, at the end of the run."""
        self.save()

    def _rows(self) -> list[dict[str, str]]:
        """Read the complete rows on the disk. The last row may be cut off after a kill."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if None not in row.values() and row.get("step", "").isdigit()]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write the file anew under a temporary name, and replace the old one."""
        filled = [{name: value for name, value in row.items() if value != ""} for row in rows]
        self._columns = sorted({"step"}.union(*filled))
        if filled:
            text = io.StringIO()
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows(filled)
            with atomic_write(self.path) as file:
                file.write(text.getvalue().encode())
        else:
            self.path.unlink(missing_ok=True)
            self._columns = []
        self._new = []


def _metrics(row: Mapping[str, str]) -> set[str]:
    return {name for name, value in row.items() if value and name != "step"}


def _wandb(folder: Path, run_id: str | None) -> Logger:
    return WandbLogger(
        name=folder.name,
        save_dir=folder,
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        id=run_id,
        resume="allow",
    )


def _mlflow(folder: Path, run_id: str | None) -> Logger:
    server = os.environ.get("MLFLOW_TRACKING_URI")
    runs = folder.parent.absolute()
    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
        run_name=folder.name,
        # Without a server, one database for all runs: mlflow ui --backend-store-uri sqlite:///runs/mlflow.db
        tracking_uri=server or f"sqlite:///{runs / 'mlflow.db'}",
        artifact_location=None if server else (runs / "mlartifacts").as_uri(),
        run_id=run_id,
    )


class _Tracker(NamedTuple):
    """Third-party tracker: its logger, its package, and advice for an error."""

    make: Callable[[Path, str | None], Logger]
    packages: str
    next_step: str


_OTHERS = {
    "wandb": _Tracker(_wandb, "wandb", "wandb login, or WANDB_MODE=offline to upload later with `wandb sync`"),
    "mlflow": _Tracker(
        _mlflow, "mlflow", "set MLFLOW_TRACKING_URI to a running server, or unset it to use runs/mlflow.db"
    ),
}


def _read_run_ids(folder: Path) -> dict[str, str]:
    path = folder / TRACKER_IDS
    run_ids: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return run_ids
