"""What watches a run: the progress bar, and the stop that leaves a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
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

from lakeclip.errors import ConfigError
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.watching.throughput import Throughput


class RunProgress(ProgressBar):
    """One bar for the whole run with its speed, loss and the time left; nothing at all when standard error is piped."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self._throughput = throughput
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """The opposite of `disable`."""
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
    """Says how long the first step took, in which a compiled model is compiled."""

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


class Stopped(Exception):  # noqa: N818 – not an error: the run was asked to end
    """The run was asked to stop, and its checkpoint is written."""


class StopAt(Callback):
    """Ends a run at a step of its schedule, with a checkpoint; a run that ends there anyway ends by itself.

    Args:
        world_size: processes that have to train together.
    """

    def __init__(self, step: int, checkpoint: Path, *, world_size: int) -> None:
        self._step, self._checkpoint, self._world_size = step, checkpoint, world_size

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size != self._world_size:
            raise ConfigError(
                "the run is to be repeated on another number of devices",
                found=str(trainer.world_size),
                allowed=f"{self._world_size}, as it was",
                next_step=f"torchrun --nproc-per-node {self._world_size}, or a machine with as many",
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        if trainer.global_step == self._step < pl_module.total_steps:
            trainer.save_checkpoint(self._checkpoint)
            raise Stopped


class ValidateAtEnd(Callback):
    """Validates after the last step, wherever in an epoch that is, so that what a run ends with has a score."""

    def __init__(self) -> None:
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        self._last_step = pl_module.total_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:
            # It is about to stop anyway, but only to those that were asked to does Lightning grant a validation.
            trainer.should_stop = True


class GracefulStop(Callback):
    """On the first Ctrl-C, SIGTERM or SIGUSR1 asks the run to save and end (`Saving` does); on the second ends at once.

    SIGTERM is what a machine that is about to be taken away sends, and SLURM; the latter sends SIGUSR1 where asked to.

    Attributes:
        received: the signal, if there was one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._module: ContrastiveModule | None = None
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        self._module = pl_module
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._ask)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has put its own before ours meanwhile, which ends the run after a step, unsaved and with code 0.
        for number in self._previous:
            signal.signal(number, self._ask)
        trainer._signal_connector.received_sigterm = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A loading process inherits the handler. Ctrl-C reaches it too, but the step still needs its batches.
            if number == signal.SIGTERM:
                sys.exit(1)
        elif self._module is None or self._module.stop_requested:
            raise KeyboardInterrupt
        else:
            self.received = number
            self._module.stop_requested = True
            sys.stderr.write("\nfinishing this step, then writing a checkpoint; once more to stop at once\n")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
