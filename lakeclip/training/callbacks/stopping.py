"""Callbacks that end a run: at a step, on a signal, and with a last validation."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lakeclip.errors import ConfigError
from lakeclip.training.module import ContrastiveModule


class Stopped(Exception):  # noqa: N818 – not an error: the run was asked to end
    """Exception that ends a run which was asked to stop, once its checkpoint is written."""


class StopAtStep(Callback):
    """Callback that writes a checkpoint at a given step and ends the run, unless the run ends there anyway.

    Args:
        step: the last step.
        checkpoint: path of the checkpoint.
        world_size: number of processes that the run must have.
    """

    def __init__(self, step: int, checkpoint: Path, *, world_size: int) -> None:
        self._step, self._checkpoint, self._world_size = step, checkpoint, world_size

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size != self._world_size:
            raise ConfigError(
                "the run cannot be repeated on a different number of devices",
                found=str(trainer.world_size),
                allowed=f"{self._world_size}, as in the original run",
                next_step=f"torchrun --nproc-per-node {self._world_size}, on a machine with as many devices",
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        if trainer.global_step == self._step < pl_module.total_steps:
            trainer.save_checkpoint(self._checkpoint)
            raise Stopped


class ValidateAtEnd(Callback):
    """Callback that validates after the last step, even in the middle of an epoch, to score the final weights."""

    def __init__(self) -> None:
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        self._last_step = pl_module.total_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:
            # The run ends here anyway, but Lightning validates only if it was told to stop.
            trainer.should_stop = True


class GracefulStop(Callback):
    """Callback for signals: the first Ctrl-C, SIGTERM or SIGUSR1 saves and ends the run, the second ends it at once.

    `CheckpointWriter` writes the checkpoint. SLURM and preempted machines send SIGTERM; SLURM sends SIGUSR1 on request.

    Attributes:
        received: number of the received signal, or None.
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
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has installed its own handler since, which would end the run unsaved and with exit code 0.
        for number in self._previous:
            signal.signal(number, self._handle)
        trainer._signal_connector.received_sigterm = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker process inherits the handler, and Ctrl-C reaches it too, but the step still needs its batches.
            if number == signal.SIGTERM:
                sys.exit(1)
        elif self._module is None or self._module.stop_requested:
            raise KeyboardInterrupt
        else:
            self.received = number
            self._module.stop_requested = True
            sys.stderr.write("\nfinishing this step, then writing a checkpoint; interrupt again to stop at once\n")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
