"""Progress bar of a run, and the report of the compile time."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lakeclip.training.callbacks.throughput import Throughput
from lakeclip.training.module import ContrastiveModule


class RunProgress(ProgressBar):
    """Progress bar for the whole run with speed, loss and remaining time; only if standard error is a terminal."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self._throughput = throughput
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._enabled = True

    def disable(self) -> None:
        """Disable the bar. Lightning calls this on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Enable the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (self._enabled and sys.stderr.isatty()):
            return
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        assert isinstance(pl_module, ContrastiveModule)
        total = pl_module.total_steps
        self._task = self._progress.add_task("train", total=total, completed=trainer.global_step, state="")
        self._progress.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is None or self._task is None:
            return
        metrics = trainer.callback_metrics
        state = str(self._throughput.speed)
        for name in ("train/loss", "val/loss"):
            if name in metrics:
                state += f"  {name.replace('/', ' ')} {float(metrics[name]):.3f}"
        self._progress.update(self._task, completed=trainer.global_step, state=state)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class CompileTime(Callback):
    """Callback that prints the duration of the first step, in which `torch.compile` compiles the model."""

    def __init__(self) -> None:
        self._started: float | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._started is None:
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._started and trainer.is_global_zero:
            sys.stdout.write(f"compiled: the first step took {time.perf_counter() - self._started:.0f} s\n")
            sys.stdout.flush()
        self._started = 0.0
