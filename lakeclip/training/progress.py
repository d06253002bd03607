"""Progress of a run at a checkpoint: the steps done, and the steps to come with the batches of today.

Lightning counts batches, and ends an epoch by their number. If the batch size, the accumulation or the data changed,
its numbers no longer fit the position in the data, so they are derived from that position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.position import steps_left


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run at the start of a segment.

    Attributes:
        step: steps done.
        epochs: epochs whose steps are all done.
        position: pairs of the next epoch that have been used; 0 if that epoch has not begun.
    """

    step: int = 0
    epochs: int = 0
    position: int = 0

    @property
    def is_within_epoch(self) -> bool:
        """True if some steps of an epoch are done, and others are to come."""
        return self.position > 0

    def total_steps(
        self,
        *,
        num_rows: int,
        samples_per_step: int,
        max_epochs: int | None,
        max_steps: int | None,
        max_steps_per_epoch: int | None = None,
    ) -> int | None:
        """Return the length of the run: the steps done, and those to come in the rest of this epoch and in the others.

        Args:
            num_rows: rows of an epoch.
            samples_per_step: pairs of a step, over all devices and accumulated batches.
            max_epochs, max_steps: limits of the run; the smaller one counts. None or -1 means no limit.
            max_steps_per_epoch: Lightning's `limit_train_batches`.

        Returns:
            The number of steps, which is `step` if nothing is to come; None if the run has no limit.
        """
        limits = []
        if max_epochs is not None and max_epochs >= 0:
            each = steps_left(0, num_rows, samples_per_step, max_steps_per_epoch)
            epochs = max_epochs - self.epochs
            to_come = max(0, epochs) * each
            if epochs > 0 and self.is_within_epoch:
                to_come += steps_left(self.position, num_rows, samples_per_step, max_steps_per_epoch) - each
            limits.append(self.step + to_come)
        if max_steps is not None and max_steps >= 0:
            limits.append(max_steps)
        return max(self.step, min(limits)) if limits else None


def read_progress(checkpoint: Mapping[str, Any], data_state: Mapping[str, Any], plan: int) -> TrainingProgress:
    """Return the progress that a checkpoint records.

    Args:
        checkpoint: content of the file.
        data_state: the state of the data module in it.
        plan: fingerprint of the data as it is now. If the data has changed, an unfinished epoch begins anew.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
    step, position = int(data_state["step"]), int(data_state["position"])
    # Before the validation at an epoch's end, Lightning still counts that epoch as unfinished.
    is_over = position == 0 and batches["processed"] > 0 and epochs["started"] > epochs["processed"]
    if data_state.get("plan") != plan:
        position = 0
    return TrainingProgress(step, int(epochs["processed"]) + int(is_over), position)


def data_state(checkpoint: Mapping[str, Any], datamodule: str = "PairDataModule") -> dict[str, Any] | None:
    """Return the state of the data module in a checkpoint; None if it was written with another dataloader.

    Args:
        datamodule: name of the data module's class.
    """
    loaders = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    state = checkpoint.get(datamodule) or next(iter(loaders), None)
    return state if isinstance(state, dict) and "position" in state else None


def load_progress(checkpoint: dict[str, Any], datamodule: PairDataModule) -> TrainingProgress:
    """Return the progress that a checkpoint records, and make Lightning's counters in it agree with the data.

    Args:
        checkpoint: content of the file, whose counters are changed.
        datamodule: the data module of today's run, attached to its trainer.
    """
    state = data_state(checkpoint, type(datamodule).__qualname__)
    if state is None:
        return TrainingProgress()
    progress = read_progress(checkpoint, state, datamodule.train_stream.plan.fingerprint)
    loop = checkpoint["loops"]["fit_loop"]
    counters = loop["epoch_loop.batch_progress"]
    per_step = datamodule.batches_per_step
    if state["position"] and not progress.position:  # the data has changed, so the epoch begins again
        for count in loop["epoch_progress"].values():
            count["ready"] = count["started"] = count["processed"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = progress.step
    elif state["position"]:
        left = steps_left(
            progress.position, datamodule.num_train_rows, datamodule.samples_per_step, datamodule.max_steps_per_epoch
        )
        # The batch that was fetched before a checkpoint may have been the epoch's last.
        counters["is_last_batch"] = left == 0
        if not left:  # Today's batches are too large for the rest of the epoch, so it is over.
            for count in ("total", "current"):
                loop["epoch_progress"][count]["processed"] = loop["epoch_progress"][count]["started"]
        _shift(counters["current"], (datamodule.max_steps_per_epoch - left) * per_step)
    _shift(counters["total"], progress.step * per_step)
    return progress


def _shift(counter: dict[str, int], processed: int) -> None:
    # A checkpoint written by a hook at the end of a batch counts that batch as processed, but not as completed.
    by = processed - counter["processed"]
    for name in ("ready", "started", "processed", "completed"):
        counter[name] += by
