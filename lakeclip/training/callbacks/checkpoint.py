"""Checkpoints from which a run resumes exactly: with the curves, weights and samples of an uninterrupted run.

A checkpoint is written between two steps, after all curves up to there. If a validation follows, it also follows after
a resume: a run that is killed or stopped in the middle of a validation repeats it from its start.
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
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lakeclip.checkpoints.file import write_torch_file
from lakeclip.checkpoints.folder import LAST, STEP_PATTERN
from lakeclip.config.schema import TrainerConfig
from lakeclip.files import PARTIAL_SUFFIX
from lakeclip.training.callbacks.ema import averaged_weights
from lakeclip.training.callbacks.stopping import Stopped
from lakeclip.training.callbacks.throughput import Throughput
from lakeclip.training.module import ContrastiveModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint I/O that writes to a temporary file, flushes it, and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_torch_file(checkpoint, Path(path))


class CheckpointWriter(Checkpoint):
    """Callback that writes last.ckpt, and ends a run that was asked to stop after writing it.

    It writes every `--save-every-steps` steps and `--save-every-minutes` minutes, after each validation within an
    epoch, at the end of each epoch, when the run is asked to stop, and when the data can no longer be read. With
    `--keep-last` above 1, earlier checkpoints stay beside it as `step-….ckpt`.

    Lightning's own `save_last` copies the best checkpoint, which is not updated once the score stops improving.

    Args:
        folder: folder of the run.
        config: says how often to write, and how many checkpoints to keep.
    """

    def __init__(self, folder: Path, config: TrainerConfig) -> None:
        self._last = folder / LAST
        self._every_steps = config.save_every_steps
        self._seconds = 60 * config.save_every_minutes
        self._num_kept = config.keep_last
        self._within_epochs = config.val_every_steps is not None
        self._saved_at = time.monotonic()
        self._saved_step = -1
        #: What follows the checkpoint being written; None if Lightning's own counters say so.
        self._next: Literal["batch", "validation"] | None = None

    # ── when ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            for partial in self._last.parent.glob(f"*{PARTIAL_SUFFIX}"):
                # Left by a kill or a power failure in the middle of a write.
                partial.unlink(missing_ok=True)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the end of the previous step, whose metrics are logged only after that hook.
        assert isinstance(pl_module, ContrastiveModule)
        if pl_module.is_between_steps:
            if self._is_due(trainer, pl_module):
                self._save(trainer, before="batch")
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, Throughput):
                        callback.resume()
            if pl_module.stop_agreed:
                raise Stopped
        # The clocks of the processes differ, so only the first process decides.
        is_overdue = time.monotonic() - self._saved_at >= self._seconds
        pl_module.save_requested = is_overdue and trainer.is_global_zero

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
        stop = trainer.strategy.reduce_boolean_decision(pl_module.stop_requested, all=False)
        if stop and not self._is_last(trainer, pl_module):
            if trainer.global_step != self._saved_step:
                # During validation the model holds the averaged weights, if any; this swaps the raw ones back in.
                with averaged_weights(trainer, pl_module):
                    self._save(trainer, before="validation")
            raise Stopped

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._within_epochs:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # If loading a batch failed, the weights are those after the last step. With several processes the others do not
        # know of the failure, and would not take part in saving.
        if not isinstance(exception, Exception) or isinstance(exception, Stopped) or trainer.world_size > 1:
            return
        assert isinstance(pl_module, ContrastiveModule)
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        is_waiting = trainer.training and pl_module.is_between_steps and batches.ready == batches.completed
        if is_waiting and pl_module.is_restored and trainer.global_step > max(self._saved_step, 0):
            # The exception that ends the run must reach the user, not a failure to save.
            with contextlib.suppress(OSError, RuntimeError):
                self._save(trainer)

    def _is_due(self, trainer: L.Trainer, module: ContrastiveModule) -> bool:
        step = trainer.global_step
        if step == self._saved_step:
            return False
        is_due_by_steps = self._every_steps is not None and step % self._every_steps == 0
        return is_due_by_steps or module.save_agreed or module.stop_agreed

    def _is_last(self, trainer: L.Trainer, module: ContrastiveModule) -> bool:
        """Return True if the run ends with this validation, as Lightning cannot resume with a validation alone."""
        return trainer.global_step >= module.total_steps

    # ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _save(self, trainer: L.Trainer, *, before: Literal["batch", "validation"] | None = None) -> None:
        for logger in trainer.loggers:
            # A resume drops the curves after the checkpoint's step, so they must be complete up to it.
            logger.save()
        self._next = before
        try:
            trainer.save_checkpoint(self._last)
        finally:
            self._next = None
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if self._num_kept > 1 and trainer.is_global_zero:
            self._keep_step_checkpoint()

    def _keep_step_checkpoint(self) -> None:
        """Keep the last checkpoint as step-….ckpt too, and delete the oldest of those."""
        folder = self._last.parent
        path = folder / f"step-{self._saved_step:08d}.ckpt"
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        try:
            os.link(self._last, partial)
        except OSError:  # The file system has no hard links.
            shutil.copyfile(self._last, partial)
        partial.replace(path)
        for old in sorted(folder.glob(STEP_PATTERN))[: -self._num_kept]:
            old.unlink()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the best score of a run whose folder was moved."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state and state.get("dirpath") != callback.dirpath:
                _move_best(state, Path(str(callback.dirpath)))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's progress counters to resume with what follows the checkpoint."""
        loop = checkpoint["loops"]["fit_loop"]
        if self._next == "batch":
            # The next batch has been fetched already, and must be fetched again after a resume.
            for count in ("total", "current"):
                loop["epoch_loop.batch_progress"][count]["ready"] -= 1
        elif self._next == "validation":
            # Lightning resumes with a validation if one of its batches was started and none was completed.
            progress = loop["epoch_loop.val_loop.batch_progress"]
            done = progress["total"]["completed"] - progress["current"]["completed"]
            progress["total"].update(ready=done + 1, started=done + 1, processed=done, completed=done)
            progress["current"].update(ready=0, started=0, processed=0, completed=0)
            progress["is_last_batch"] = False


def _move_best(state: dict[str, Any], folder: Path) -> None:
    """Point the state of Lightning's `ModelCheckpoint` to the run's folder of today; without its file it is reset."""
    best = folder / Path(state["best_model_path"]).name
    state["dirpath"] = str(folder)
    if not state["best_model_path"] or not best.is_file():
        state.update(
            best_model_path="", best_model_score=None, best_k_models={}, kth_best_model_path="", kth_value=None
        )
        return
    scores = {str(folder / Path(path).name): score for path, score in state["best_k_models"].items()}
    last = state.get("last_model_path") or ""
    state.update(
        best_model_path=str(best),
        best_k_models=scores,
        kth_best_model_path=str(best) if state["kth_best_model_path"] else "",
        last_model_path=str(folder / Path(last).name) if last else "",
    )
