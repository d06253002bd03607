"""The guard: which steps are not taken, what is said about them, and the way back to good weights.

A bad row, an overflow or a learning rate too high shows as a loss or gradient that is not finite, or as a loss far
above those before it. Such a step is left out: its gradients are dropped, and batch norm's statistics are as they were
before it. All is decided on values that all processes have agreed on (`gradients.agree`), so all decide the same.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from lakeclip.checkpoints.folder import LAST
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError
from lakeclip.evaluation.pages.account import SKIPPED
from lakeclip.lake.several import Lakes
from lakeclip.training.gradients import Agreed
from lakeclip.training.microbatch import StepResult

if TYPE_CHECKING:
    from lakeclip.training.module import ContrastiveModule

_WINDOW = 128
_FEWEST = 64
_DEVIATIONS = 10.0
_LEAST_RISE = 1.0
_MAD_TO_DEVIATION = 1.4826

_log = logging.getLogger(__name__)


class Spikes:
    """Knows a loss that is far above the last ones, by their median and their median deviation.

    Far is ten standard deviations, and one nat at least: small batches have noisy losses, and late in a run ten
    deviations are next to nothing. The first 64 losses are never far off, nor is any that falls.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def limit(self) -> float:
        """Above this a loss is a spike; infinite while too few are known."""
        if len(self._losses) < _FEWEST:
            return math.inf
        middle = statistics.median(self._losses)
        deviation = _MAD_TO_DEVIATION * statistics.median(abs(loss - middle) for loss in self._losses)
        return middle + max(_LEAST_RISE, _DEVIATIONS * deviation)

    def add(self, loss: float) -> None:
        """A loss of a step that was taken."""
        self._losses.append(loss)

    @property
    def losses(self) -> list[float]:
        """Those that are known, the oldest first."""
        return list(self._losses)

    def forget(self) -> None:
        """Other weights, other losses."""
        self._losses.clear()


class _Noted(NamedTuple):
    """A batch of the step: its rows (None from a dataloader that does not say), its number, and what came of it."""

    rows: Tensor | None
    number: int
    result: StepResult


class Guard:
    """Judges the steps of one run.

    Args:
        max_skipped: after so many steps left out in a row the weights go back to the last checkpoint.
        folder: of the run, with that checkpoint and the list of what was left out; None for a run that has none.

    Attributes:
        left_out: the last step was.
    """

    def __init__(self, max_skipped: int = 3, folder: Path | None = None) -> None:
        self._max_skipped = max_skipped
        self._folder = folder
        self._spikes = Spikes()
        self._in_a_row = 0
        self._is_back = False
        self._batches: list[_Noted] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self.left_out = False

    def state_dict(self) -> dict[str, Any]:
        """What is known of the steps so far: a run that goes on judges the next one as this one would have."""
        return {"losses": self._spikes.losses, "in_a_row": self._in_a_row, "is_back": self._is_back}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The opposite of `state_dict`."""
        self._spikes.forget()
        for loss in state_dict["losses"]:
            self._spikes.add(loss)
        self._in_a_row, self._is_back = state_dict["in_a_row"], state_dict["is_back"]

    def begin(self, model: nn.Module) -> None:
        """A step begins: remember what a batch can change besides the gradients."""
        self._batches.clear()
        moving = [
            buffer
            for layer in model.modules()
            if isinstance(layer, nn.modules.batchnorm._BatchNorm)
            for buffer in layer.buffers(recurse=False)
        ]
        self._statistics = [(buffer, buffer.clone()) for buffer in moving]

    def note(self, batch: Any, index: int, result: StepResult) -> None:
        """A batch of this step has been embedded and compared."""
        rows = getattr(batch, "rows", None)
        self._batches.append(_Noted(rows if isinstance(rows, Tensor) else None, index, result))

    def judge(self, agreed: Agreed, *, is_scaled: bool) -> str | None:
        """What is wrong with this step; None if it may be taken.

        Args:
            is_scaled: gradients are scaled for float16. There an overflow is how the scale is found: the scaler passes
                over it by itself and lowers the scale, and no row is at fault.
        """
        fault = None
        limit = self._spikes.limit()
        if not math.isfinite(agreed.loss):
            fault = f"the loss is {agreed.loss}"
        elif not math.isfinite(agreed.grad_norm) and not is_scaled:
            fault = f"the gradient's norm is {agreed.grad_norm}"
        elif agreed.loss > limit:
            fault = f"the loss spikes to {agreed.loss:.3f}; up to {limit:.3f} would pass"
        self.left_out = fault is not None
        if fault is None:
            self._spikes.add(agreed.loss)
            self._in_a_row, self._is_back = 0, False
        else:
            self._in_a_row += 1
        return fault

    @torch.no_grad()
    def leave_out(self, module: ContrastiveModule, fault: str, agreed: Agreed) -> None:
        """Undo what the step's batches changed, say which rows it had, and go back if this is one too many in a row.

        Raises:
            ConfigError: going back is needed, and there is no checkpoint or it did not help.
        """
        for buffer, before in self._statistics:
            buffer.copy_(before)
        rows, suspects = self._rows(module)
        if module.trainer.is_global_zero:
            self._say(module, fault, agreed, rows, suspects)
        if self._in_a_row >= self._max_skipped:
            self._go_back(module)

    # ── which rows ────────────────────────────────────────────────────────────────────────────────────────────────

    def _rows(self, module: ContrastiveModule) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """All rows of the step, and those of them whose own features are not finite, of all processes by lake."""
        own: list[tuple[str, int, bool]] = []
        for batch in self._batches:
            sides = batch.result.image_features, batch.result.text_features
            bad = ~torch.stack([side.isfinite().all(dim=-1) for side in sides]).all(dim=0)
            rows = range(len(bad)) if batch.rows is None else batch.rows.tolist()
            own += [(*_located(module, batch, row), flag) for row, flag in zip(rows, bad.tolist(), strict=True)]
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

    def _say(
        self,
        module: ContrastiveModule,
        fault: str,
        agreed: Agreed,
        rows: Mapping[str, list[int]],
        suspects: Mapping[str, list[int]],
    ) -> None:
        step, epoch = module.trainer.global_step, module.trainer.current_epoch
        named = f"not finite by themselves: {_few(suspects)}; " if suspects else ""
        _log.warning("step %d is left out: %s; %sits rows: %s", step, fault, named, _few(rows))
        if self._folder is not None:
            entry = {
                "step": step,
                "epoch": epoch,
                "fault": fault,
                "loss": repr(agreed.loss),
                "grad_norm": repr(agreed.grad_norm),
                "suspects": suspects,
                "rows": rows,
            }
            with (self._folder / SKIPPED).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    # ── the way back ──────────────────────────────────────────────────────────────────────────────────────────────

    def _go_back(self, module: ContrastiveModule) -> None:
        """Weights, average and optimiser state of the last checkpoint; the data and the schedule go on from here."""
        strategy = module.trainer.strategy
        path = self._folder / LAST if self._folder is not None else None
        path = strategy.broadcast(path if path is not None and path.is_file() else None)
        if path is None or self._is_back:
            tried = "going back to the last checkpoint did not help" if path else "there is no checkpoint to go back to"
            listed = f"; the rows are in {self._folder / SKIPPED}" if self._folder is not None else ""
            raise ConfigError(
                f"training came apart: {self._in_a_row} steps in a row had to be left out, and {tried}",
                next_step="a lower --lr, a longer --warmup-steps, --max-grad-norm 1, or --precision bf16 in place of 16"
                + listed,
            )
        content = strategy.load_checkpoint(path, weights_only=True)
        if "optimizer_states" in content:
            # Sharded weights and states are filled while they are read.
            strategy.load_model_state_dict(content, strict=True)
            strategy.load_optimizer_state_dict(content)
        for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.on_load_checkpoint(module.trainer, module, content)
        self._spikes.forget()
        self._in_a_row, self._is_back = 0, True
        if module.trainer.is_global_zero:
            reached = content["lakeclip"]["progress"]["step"] if content.get("lakeclip") else content["global_step"]
            _log.warning(
                "%d steps in a row were left out: the weights go back to step %d (%s), the data goes on",
                self._max_skipped,
                reached,
                path,
            )


def _located(module: ContrastiveModule, batch: _Noted, row: int) -> tuple[str, int]:
    """The lake and the row in it; for a dataloader that does not say, the batch and the place in it."""
    if batch.rows is None:
        return f"batch {batch.number} of rank {module.global_rank}", row
    datamodule = getattr(module.trainer, "datamodule", None)
    if not isinstance(datamodule, PairDataModule):
        return "rows", row
    source = datamodule.source
    return source.locate(row) if isinstance(source, Lakes) else (str(source.path), row)


def _few(rows: Mapping[str, list[int]], most: int = 8) -> str:
    """Rows for a line of text."""
    return "; ".join(
        f"{lake} {', '.join(map(str, numbers[:most]))}"
        + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
        for lake, numbers in rows.items()
    )
