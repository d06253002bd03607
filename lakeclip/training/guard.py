"""Steps that are skipped: their detection, the report of their rows, and the rollback to good weights.

A bad row, an overflow or too high a learning rate shows as a loss or gradient that is not finite, or as a loss far
above the recent ones. Such a step is skipped: its gradients are dropped, and batch norm's statistics are restored. All
decisions rest on values that the processes have reduced together (`gradients`), so all processes decide alike.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from lakeclip.checkpoints.folder import LAST, SKIPPED
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError
from lakeclip.models.layers import batch_norms
from lakeclip.training.grad_cache import StepResult
from lakeclip.training.gradients import StepStats
from lakeclip.training.loss_spikes import LossSpikeDetector

_log = logging.getLogger(__name__)


class _Batch(NamedTuple):
    """A batch of the step: its rows (None if the dataloader does not name them), its number, and its result."""

    rows: Tensor | None
    number: int
    result: StepResult


class Guard:
    """Check of the steps of one run.

    Args:
        max_skipped: skipped steps in a row after which the weights roll back to the last checkpoint.
        folder: the run's folder, with that checkpoint and the list of skipped steps; None if the run has none.

    Attributes:
        skipped: the last step was skipped.
    """

    def __init__(self, max_skipped: int = 3, folder: Path | None = None) -> None:
        self._max_skipped = max_skipped
        self._folder = folder
        self._spikes = LossSpikeDetector()
        self._in_a_row = 0
        self._has_rolled_back = False
        self._batches: list[_Batch] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self.skipped = False

    def state_dict(self) -> dict[str, Any]:
        """Return the history of the losses, so that a resumed run checks its steps as this one would have."""
        return {"losses": self._spikes.losses, "in_a_row": self._in_a_row, "is_back": self._has_rolled_back}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._spikes.clear()
        for loss in state_dict["losses"]:
            self._spikes.add(loss)
        self._in_a_row, self._has_rolled_back = state_dict["in_a_row"], state_dict["is_back"]

    def begin_step(self, model: nn.Module) -> None:
        """Remember the statistics of batch norm, which the batches of a step change besides the gradients."""
        self._batches.clear()
        moving = [buffer for layer in batch_norms(model) for buffer in layer.buffers(recurse=False)]
        self._statistics = [(buffer, buffer.clone()) for buffer in moving]

    def record_batch(self, batch: Any, index: int, result: StepResult) -> None:
        """Record a batch of this step together with its result."""
        rows = getattr(batch, "rows", None)
        self._batches.append(_Batch(rows if isinstance(rows, Tensor) else None, index, result))

    def check(self, stats: StepStats, *, is_scaled: bool) -> str | None:
        """Return what is wrong with this step, or None if it may be taken.

        Args:
            is_scaled: gradients are scaled for float16. An overflow is then expected: the scaler skips such a step by
                itself and lowers the scale, and no row is at fault.
        """
        fault = None
        limit = self._spikes.threshold()
        if not math.isfinite(stats.loss):
            fault = f"the loss is {stats.loss}"
        elif not math.isfinite(stats.grad_norm) and not is_scaled:
            fault = f"the gradient's norm is {stats.grad_norm}"
        elif stats.loss > limit:
            fault = f"the loss spikes to {stats.loss:.3f}, above the limit of {limit:.3f}"
        self.skipped = fault is not None
        if fault is None:
            self._spikes.add(stats.loss)
            self._in_a_row, self._has_rolled_back = 0, False
        else:
            self._in_a_row += 1
        return fault

    @torch.no_grad()
    def skip_step(self, trainer: L.Trainer, fault: str, stats: StepStats) -> None:
        """Undo what the step's batches changed, report their rows, and roll back after too many skips in a row.

        Raises:
            ConfigError: a rollback is due, but there is no checkpoint, or the last rollback did not help.
        """
        for buffer, before in self._statistics:
            buffer.copy_(before)
        rows, suspects = self._collect_rows(trainer)
        if trainer.is_global_zero:
            self._report(trainer, fault, stats, rows, suspects)
        if self._in_a_row >= self._max_skipped:
            self._rollback(trainer)

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────────────

    def _collect_rows(self, trainer: L.Trainer) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """Return the step's rows of all processes by lake, and those whose own features are not finite."""
        own: list[tuple[str, int, bool]] = []
        for batch in self._batches:
            sides = batch.result.image_features, batch.result.text_features
            bad = ~torch.stack([side.isfinite().all(dim=-1) for side in sides]).all(dim=0)
            rows = range(len(bad)) if batch.rows is None else batch.rows.tolist()
            own += [(*_locate(trainer, batch, row), flag) for row, flag in zip(rows, bad.tolist(), strict=True)]
        everyone: list[list[tuple[str, int, bool]]] = [own]
        if dist.is_available() and dist.is_initialized():
            everyone = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyone, own)
        rows_by_lake: dict[str, list[int]] = {}
        suspects: dict[str, list[int]] = {}
        for part in everyone:
            for lake, row, is_bad in part:
                rows_by_lake.setdefault(lake, []).append(row)
                if is_bad:
                    suspects.setdefault(lake, []).append(row)
        return rows_by_lake, suspects

    def _report(
        self,
        trainer: L.Trainer,
        fault: str,
        stats: StepStats,
        rows: Mapping[str, list[int]],
        suspects: Mapping[str, list[int]],
    ) -> None:
        step, epoch = trainer.global_step, trainer.current_epoch
        named = f"not finite by themselves: {_format_rows(suspects)}; " if suspects else ""
        _log.warning("step %d is skipped: %s; %sits rows: %s", step, fault, named, _format_rows(rows))
        if self._folder is not None:
            entry = {
                "step": step,
                "epoch": epoch,
                "fault": fault,
                "loss": repr(stats.loss),
                "grad_norm": repr(stats.grad_norm),
                "suspects": suspects,
                "rows": rows,
            }
            with (self._folder / SKIPPED).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")  # names of files need not be UTF-8

    # ── rollback ──────────────────────────────────────────────────────────────────────────────────────────────

    def _rollback(self, trainer: L.Trainer) -> None:
        """Restore weights, average and optimiser state from the last checkpoint; the data and the schedule continue."""
        strategy = trainer.strategy
        path = self._folder / LAST if self._folder is not None else None
        path = strategy.broadcast(path if path is not None and path.is_file() else None)
        if path is None or self._has_rolled_back:
            reason = (
                "rolling back to the last checkpoint did not help" if path else "there is no checkpoint to roll back to"
            )
            listed = f"; the rows are in {self._folder / SKIPPED}" if self._folder is not None else ""
            raise ConfigError(
                f"training diverged: {self._in_a_row} steps in a row were skipped, and {reason}",
                next_step="a lower --lr, a longer --warmup-steps, --max-grad-norm 1, or --precision bf16 in place of 16"
                + listed,
            )
        content = strategy.load_checkpoint(path, weights_only=True)
        if "optimizer_states" in content:
            # Sharded weights and states are filled while they are read.
            strategy.load_model_state_dict(content, strict=True)
            strategy.load_optimizer_state_dict(content)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.on_load_checkpoint(trainer, trainer.lightning_module, content)
        self._spikes.clear()
        self._in_a_row, self._has_rolled_back = 0, True
        if trainer.is_global_zero:
            reached = content["lakeclip"]["progress"]["step"] if content.get("lakeclip") else content["global_step"]
            _log.warning(
                "%d steps in a row were skipped: the weights roll back to step %d (%s), the data continues",
                self._max_skipped,
                reached,
                path,
            )


def _locate(trainer: L.Trainer, batch: _Batch, row: int) -> tuple[str, int]:
    """Return the lake and the row in it; for a dataloader that does not name rows, the batch and the index in it."""
    if batch.rows is None:
        return f"batch {batch.number} of rank {trainer.global_rank}", row
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, PairDataModule):
        return "rows", row
    return datamodule.source.locate(row)


def _format_rows(rows: Mapping[str, list[int]], most: int = 8) -> str:
    """Format rows by lake for a line of text."""
    return "; ".join(
        f"{lake} {', '.join(map(str, numbers[:most]))}"
        + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
        for lake, numbers in rows.items()
    )
