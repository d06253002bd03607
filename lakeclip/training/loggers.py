"""Where a run's curves go: metrics.csv always, and TensorBoard, Weights & Biases or MLflow by their own libraries."""

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
from lakeclip.files import whole_file

#: What the runs are filed under, where the tracker's own variable does not say.
_PROJECT = "lakeclip"
#: Rows of metrics.csv that are kept in memory at most.
_BUFFERED = 50
#: Where a run keeps the names that the trackers gave it, so that one that goes on is one curve there.
TRACKED = "tracked.json"


def check_trackers(names: Sequence[str]) -> None:
    """Say before anything is built which trackers are not installed.

    Raises:
        ConfigError: one of them is not.
    """
    for name in names:
        if name in _OTHERS and find_spec(name) is None:
            raise ConfigError(
                f"curves are to go to {name} (--track {' '.join(names)}), which is not installed",
                allowed="tensorboard, which comes with lakeclip",
                next_step=f"pip install {_OTHERS[name].packages}",
            )


def make_loggers(names: Sequence[str], folder: Path, settings: dict[str, Any], *, reached: int = 0) -> list[Logger]:
    """Lightning's loggers of a run, each begun; the first is that of metrics.csv.

    A server, a project or a key is what the tracker's own variables say: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE,
    WANDB_API_KEY, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME. None of them is kept with the run.

    Args:
        names: trackers besides metrics.csv.
        settings: the run's configuration, for the trackers that show it.
        reached: steps of the run so far; of the curves, those are kept.

    Raises:
        OutputError: a tracker does not let a run begin.
    """
    loggers: list[Logger] = [Curves(folder / "metrics.csv", reached)]
    if "tensorboard" in names:
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    known = _read(folder)
    for name in names:
        if name in _OTHERS:
            try:
                logger = _OTHERS[name].make(folder, known.get(name))
                if is_main():
                    begun = logger.experiment.id if name == "wandb" else logger.run_id  # type: ignore[attr-defined]
                    if name not in known:
                        # The settings of one that goes on may be others; MLflow would refuse them.
                        logger.log_hyperparams(settings)
            except Exception as error:  # Each tracker has its own; none of them is lakeclip's.
                raise OutputError(
                    f"{name} does not let the run begin (--track {' '.join(names)})",
                    found=" ".join(str(error).split())[:300],
                    next_step=_OTHERS[name].next_step,
                ) from None
            if is_main():
                known[name] = begun
                (folder / TRACKED).write_text(json.dumps(known) + "\n", encoding="utf-8")
            loggers.append(logger)
    return loggers


def end_loggers(loggers: Sequence[Logger]) -> None:
    """Let the trackers know that the run is over: a next one of this process is another."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_main():
            logger.experiment.finish()


def is_main() -> bool:
    """Whether this process is the first of the run, known from the environment before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


class Curves(Logger):
    """metrics.csv: `step`, and a column for each metric. No kill, full disk or resume loses a row of it.

    Lightning's CSVLogger deletes the file of an earlier part of the run, and writes it anew in place for every new
    column.

    Args:
        path: the table.
        reached: steps of the run so far. Later rows of a table that is there are dropped: they are made again.
    """

    def __init__(self, path: Path, reached: int = 0) -> None:
        super().__init__()
        self.path = path
        self._new: list[dict[str, Any]] = []
        self._columns: list[str] = []
        self._there: list[set[str]] = []
        self._there_at = -1
        if is_main():
            kept = [row for row in self._rows() if int(row["step"]) < reached]
            self._write(kept)
            # A validation at that step may be there, and be made again.
            self._there = [_metrics(row) for row in kept if int(row["step"]) == reached - 1]
            self._there_at = reached - 1

    @property
    def name(self) -> str:
        """Of the logger; there is only one such table in a run."""
        return ""

    @property
    def version(self) -> str:
        """As `name`."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They are in the run's config.yaml."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        if not is_main():
            return
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        if step == self._there_at and {*values} - {"step"} in self._there:
            return
        self._new.append({**values, "step": step or 0})
        if len(self._new) >= _BUFFERED:
            self.save()

    def save(self) -> None:
        """Have all rows so far on the disk."""
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
        """The run is over."""
        self.save()

    def _rows(self) -> list[dict[str, str]]:
        """The rows that are on the disk and whole: the last one may not be."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if None not in row.values() and row.get("step", "").isdigit()]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write the table anew, aside, and let it take the place of the one before."""
        filled = [{name: value for name, value in row.items() if value != ""} for row in rows]
        self._columns = sorted({"step"}.union(*filled))
        if filled:
            text = io.StringIO()
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows(filled)
            with whole_file(self.path) as file:
                file.write(text.getvalue().encode())
        else:
            self.path.unlink(missing_ok=True)
            self._columns = []
        self._new = []


def _metrics(row: Mapping[str, str]) -> set[str]:
    return {name for name, value in row.items() if value and name != "step"}


def _wandb(folder: Path, known: str | None) -> Logger:
    return WandbLogger(
        name=folder.name,
        save_dir=folder,
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        id=known,
        resume="allow",
    )


def _mlflow(folder: Path, known: str | None) -> Logger:
    server = os.environ.get("MLFLOW_TRACKING_URI")
    runs = folder.parent.absolute()
    return MLFlowLogger(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT),
        run_name=folder.name,
        # Where no server is named, all runs of a folder in one: mlflow ui --backend-store-uri sqlite:///runs/mlflow.db
        tracking_uri=server or f"sqlite:///{runs / 'mlflow.db'}",
        artifact_location=None if server else (runs / "mlartifacts").as_uri(),
        run_id=known,
    )


class _Tracker(NamedTuple):
    """A tracker that is not part of lakeclip."""

    make: Callable[[Path, str | None], Logger]
    packages: str
    next_step: str


_OTHERS = {
    "wandb": _Tracker(_wandb, "wandb", "wandb login, or WANDB_MODE=offline to upload later with `wandb sync`"),
    "mlflow": _Tracker(_mlflow, "mlflow", "MLFLOW_TRACKING_URI of a server that answers, or none for runs/mlflow.db"),
}


def _read(folder: Path) -> dict[str, str]:
    path = folder / TRACKED
    names: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return names
