"""An average of the weights that decays exponentially: smoother than the last step's, and often better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lakeclip.training.module import ContrastiveModule


class AveragedWeights(WeightAveraging):
    """Keeps average ← decay · average + (1 - decay) · weights after each step, from the weights after the first.

    Validation runs on the average, and a checkpoint's weights are the average; the raw ones are in it too, so a resumed
    run goes on exactly. The running statistics of batch norm are averaged as the weights are. A step that the guard
    left out is none.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # The module moves to its device later than this; the average would stay behind, and cost a copy a step.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        if not pl_module.guard.left_out:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


@contextmanager
def averaged(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """The module with its averaged weights, where the run keeps an average; else as it is."""
    averages = [one for one in trainer.callbacks if isinstance(one, AveragedWeights)]  # type: ignore[attr-defined]
    for average in averages:
        average._swap_models(module)
    try:
        yield
    finally:
        for average in averages:
            average._swap_models(module)
