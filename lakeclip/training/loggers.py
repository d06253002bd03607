"""Where a run's curves go: metrics.csv always, and TensorBoard, Weights & Biases or MLflow by their own libraries."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lakeclip.checkpoints.native import LAST, read_checkpoint
from lakeclip.errors import ConfigError, OutputError

#: What the runs are filed under, where the tracker's own variable does not say.
_PROJECT = "lakeclip"
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


def make_loggers(names: Sequence[str], folder: Path, settings: dict[str, Any]) -> list[Logger]:
    """Lightning's loggers of a run, each begun; the first is that of metrics.csv.

    A server, a project or a key is what the tracker's own variables say: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE,
    WANDB_API_KEY, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME. None of them is kept with the run.

    Args:
        names: trackers besides metrics.csv.
        settings: the run's configuration, for the trackers that show it.

    Raises:
        OutputError: a tracker does not let a run begin.
    """
    loggers: list[Logger] = [_curves(folder)]
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


def _is_whole(row: dict[str, str]) -> bool:
    """Whether a line of the curves has not been cut off, by a full disk or a kill."""
    return None not in row and None not in row.values() and row.get("step", "").isdigit()


def _curves(folder: Path) -> CSVLogger:
    """metrics.csv, with what an earlier part of the run wrote up to its last checkpoint: Lightning would delete it."""
    path, checkpoint = folder / "metrics.csv", folder / LAST
    rows: list[dict[str, str]] = []
    if is_main() and path.exists() and checkpoint.exists():
        reached = read_checkpoint(checkpoint).lineage["progress"]["step"]
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if _is_whole(row) and int(row["step"]) < reached]
    logger = CSVLogger(folder, name="", version="")
    if rows:
        logger.experiment.metrics.extend({name: value for name, value in row.items() if value} for row in rows)
        logger.save()
    return logger
