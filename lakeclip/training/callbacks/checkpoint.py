"""When a run's checkpoints are written, so that it goes on from any of them as if nothing had happened.

A checkpoint stands between two steps, with everything logged up to there on the disk. Where validation comes next it is
still to come after a resume, too: killed in the middle of it, or asked to stop, a run validates once more from the
beginning. So a run that was cut off has the curves, weights and samples of one that was not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lakeclip.checkpoints.file import write_torch_file
from lakeclip.checkpoints.folder import LAST, STEPS
from lakeclip.config.schema import TrainerConfig
from lakeclip.files import PART
from lakeclip.training.callbacks import Stopped
from lakeclip.training.ema import averaged
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.watching.throughput import Throughput


class WholeFiles(TorchCheckpointIO):
    """Checkpoints on a disk: written aside, flushed, and renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_torch_file(checkpoint, Path(path))


class Saving(Checkpoint):
    """Keeps last.ckpt at where the run stands, and ends a run that was asked to stop once that is written.

    It is written every so many steps and minutes (`--save-every-steps`, `--save-every-minutes`), after each validation
    within an epoch, at the end of each epoch, when the run is asked to stop, and when its data can no longer be read.
    Of several that are to be kept, the earlier ones are `step-….ckpt` beside it.

    Lightning's own `save_last` copies the best checkpoint, and so stands still once the score no longer improves.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path, config: TrainerConfig) -> None:
        self._last = folder / LAST
        self._every_steps = config.save_every_steps
        self._seconds = 60 * config.save_every_minutes
        self._keep = config.keep_last
        self._within_epochs = config.val_every_steps is not None
        self._written = time.monotonic()
        self._step = -1
        #: What comes next where the checkpoint is written; None where Lightning knows by itself.
        self._next: Literal["batch", "validation"] | None = None

    # ── when ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._written, self._step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            for part in self._last.parent.glob(f"*{PART}"):
                # A write that a kill or a power failure cut short.
                part.unlink(missing_ok=True)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the end of the step before: its point of the curves is logged after that.
        assert isinstance(pl_module, ContrastiveModule)
        if pl_module.is_between_steps:
            if self._is_due(trainer, pl_module):
                self._save(trainer, before="batch")
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, Throughput):
                        callback.resume()
            if pl_module.stop_agreed:
                raise Stopped
        # The processes' clocks differ: that of the first counts.
        late = time.monotonic() - self._written >= self._seconds
        pl_module.save_requested = late and trainer.is_global_zero

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        if self._is_last(trainer, pl_module):
            return
        if self._is_due(trainer, pl_module):
            self._save(trainer, before="validation")
        if pl_module.stop_agreed:
            raise Stopped

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        asked = trainer.strategy.reduce_boolean_decision(pl_module.stop_requested, all=False)
        if asked and not self._is_last(trainer, pl_module):
            if trainer.global_step != self._step:
                # The average of the weights, where there is one, stands in the model now, and the weights beside it.
                with averaged(trainer, pl_module):
                    self._save(trainer, before="validation")
            raise Stopped

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._within_epochs:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Where a batch could not be had, the weights are those after the last step; the processes of a larger run do
        # not all know of it.
        if not isinstance(exception, Exception) or isinstance(exception, Stopped) or trainer.world_size > 1:
            return
        assert isinstance(pl_module, ContrastiveModule)
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        waits = trainer.training and pl_module.is_between_steps and batches.ready == batches.completed
        if waits and trainer.global_step > max(self._step, 0):
            # What ends the run is to be told, not that it could not be saved as well.
            with contextlib.suppress(OSError, RuntimeError):
                self._save(trainer)

    def _is_due(self, trainer: L.Trainer, module: ContrastiveModule) -> bool:
        step = trainer.global_step
        if step == self._step:
            return False
        by_steps = self._every_steps is not None and step % self._every_steps == 0
        return by_steps or module.save_agreed or module.stop_agreed

    def _is_last(self, trainer: L.Trainer, module: ContrastiveModule) -> bool:
        """Whether the run ends with this validation: Lightning would not begin again with it alone."""
        return trainer.global_step >= module.total_steps

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _save(self, trainer: L.Trainer, *, before: Literal["batch", "validation"] | None = None) -> None:
        for logger in trainer.loggers:
            # The curves are cut off at the step of the checkpoint, so they have to reach it.
            logger.save()
        self._next = before
        try:
            trainer.save_checkpoint(self._last)
        finally:
            self._next = None
        self._written, self._step = time.monotonic(), trainer.global_step
        if self._keep > 1 and trainer.is_global_zero:
            self._keep_some()

    def _keep_some(self) -> None:
        """Give the last checkpoint a name of its own as well, and forget the oldest."""
        folder = self._last.parent
        name = folder / f"step-{self._step:08d}.ckpt"
        part = name.with_name(name.name + PART)
        try:
            os.link(self._last, part)
        except OSError:  # a file system without links
            shutil.copyfile(self._last, part)
        part.replace(name)
        for old in sorted(folder.glob(STEPS))[: -self._keep]:
            old.unlink()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let Lightning's counters say what comes next."""
        loop = checkpoint["loops"]["fit_loop"]
        if self._next == "batch":
            # The next batch has been fetched, and will be again.
            for count in ("total", "current"):
                loop["epoch_loop.batch_progress"][count]["ready"] -= 1
        elif self._next == "validation":
            # Lightning goes back to a validation of which a batch was begun and none of this time was completed.
            progress = loop["epoch_loop.val_loop.batch_progress"]
            done = progress["total"]["completed"] - progress["current"]["completed"]
            progress["total"].update(ready=done + 1, started=done + 1, processed=done, completed=done)
            progress["current"].update(ready=0, started=0, processed=0, completed=0)
            progress["is_last_batch"] = False
