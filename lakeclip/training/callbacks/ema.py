"""Exponential moving average (EMA) of the weights, which often scores better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lakeclip.training.module import ContrastiveModule


class AveragedWeights(WeightAveraging):
    """Callback that computes average ← decay · average + (1 - decay) · weights after each step.

    The average starts as the weights after the first step. Validation runs on the average, and a checkpoint's weights
    are the average; the checkpoint contains the raw weights too, so that a resume is exact. Batch norm's running
    statistics are averaged like weights. A step that the guard skips does not count.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # The module moves to its device after this hook; the average would stay on the CPU, and cost a copy per step.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        if not pl_module.guard.skipped:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


@contextmanager
def averaged_weights(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Swap the averaged weights into the module inside the context, if the run has an average."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    averages = [callback for callback in callbacks if isinstance(callback, AveragedWeights)]
    for average in averages:
        average._swap_models(module)
    try:
        yield
    finally:
        for average in averages:
            average._swap_models(module)
