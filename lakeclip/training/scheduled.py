"""Optimiser and learning-rate schedule of a LightningModule that steps them itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from lakeclip.config.schema import OptimizerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError
from lakeclip.training.optim.schedule import apply_settings, warmup_cosine, warmup_steps
from lakeclip.training.optim.stepping import SchedulerStepper, check_trainer, record_schedulers
from lakeclip.training.progress import TrainingProgress


class ScheduledModule(L.LightningModule):
    """LightningModule with manual optimisation whose schedulers are stepped as in automatic optimisation.

    Subclasses define `make_optimizer`, or override `configure_optimizers`.

    Attributes:
        accumulate: batches per step.
        optimizer_config: learning rate, decay and warm-up.
        scheduler_stepper: stepper of the schedulers that `configure_optimizers` returns.
    """

    accumulate: int
    optimizer_config: OptimizerConfig

    def __init__(self) -> None:
        super().__init__()
        # The step back-propagates once per micro-batch, so it calls the optimiser itself.
        self.automatic_optimization = False
        self.scheduler_stepper = SchedulerStepper()
        #: Progress at the start of this segment of the run.
        self.progress = TrainingProgress()
        #: Warm-up of an earlier segment of the run.
        self._past_warmup: int | None = None
        self._is_loaded = False
        #: Warm-up and total number of steps.
        self._planned = (0, 1)
        self._schedule: torch.optim.lr_scheduler.LambdaLR | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "configure_optimizers" in cls.__dict__:
            cls.configure_optimizers = record_schedulers(cls.configure_optimizers)  # type: ignore[method-assign]

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Check the trainer's settings; this hook comes before Lightning's own check, which names no way out."""
        if self.trainer.training:
            check_trainer(self.trainer)
        return []

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, including those before a resume.

        Raises:
            ConfigError: the length of the run is unknown.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, PairDataModule) and datamodule.batches_per_step == self.accumulate:
            known = self.progress.total_steps(
                num_rows=datamodule.num_train_rows,
                samples_per_step=datamodule.samples_per_step,
                max_epochs=self.trainer.max_epochs,
                max_steps=self.trainer.max_steps,
                max_steps_per_epoch=datamodule.max_steps_per_epoch,
            )
            if known is not None:
                return known
        batches = self.trainer.estimated_stepping_batches
        if self.accumulate > 1 and isfinite(self.trainer.num_training_batches):
            epochs = self.trainer.max_epochs
            steps = ceil(self.trainer.num_training_batches / self.accumulate)
            # Lightning's estimate counts each batch as a step.
            total = steps * max(1, epochs) if epochs is not None and epochs >= 0 else float("inf")
            batches = min(total, self.trainer.max_steps) if self.trainer.max_steps >= 0 else total
        if batches == float("inf"):
            raise ConfigError(
                "the length of the run is unknown, and the learning rate's schedule needs it",
                found="a dataloader without a length, or max_epochs=-1",
                next_step="give the trainer max_steps, or override configure_optimizers with a schedule of your own",
            )
        return int(batches)

    @property
    def known_total_steps(self) -> int | None:
        """Steps of the whole run, or None if its length is unknown."""
        try:
            return self.total_steps
        except ConfigError:
            return None

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up: the requested number, or else that with which the run began."""
        requested = self.optimizer_config.warmup_steps
        return warmup_steps(self.total_steps, self._past_warmup if requested is None else requested)

    def planned_steps(self) -> tuple[int, int] | None:
        """Return the steps of warm-up and of the whole run; None if its length is unknown."""
        return None if self.known_total_steps is None else (self.warmup_steps, self.total_steps)

    def setup(self, stage: str) -> None:
        """Forget the progress of an earlier fit, until this one has restored its own."""
        if stage == "fit":
            self.progress, self._is_loaded = TrainingProgress(), False
            self._schedule = None

    def on_train_start(self) -> None:
        """Apply the settings of this segment in place of those that a checkpoint restored."""
        configs = self.trainer.lr_scheduler_configs
        if self._schedule is None or not any(config.scheduler is self._schedule for config in configs):
            return  # A schedule of the user's own continues as its checkpoint says.
        self._planned = self.warmup_steps, self.total_steps
        apply_settings(self._schedule, self.scheduler_stepper.group_settings)

    @record_schedulers
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser and its schedule over the run's true number of steps.

        Raises:
            ConfigError: the length of the run is unknown, or every parameter is frozen.
        """
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError(
                "there is nothing to train",
                found="every parameter is frozen (requires_grad=False)",
                allowed="some trainable parameters",
            )
        self._planned = self.warmup_steps, self.total_steps
        optimizer = self.make_optimizer()
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, warmup=self._planned[0], total=self._planned[1])
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of the trainable parameters."""
        raise NotImplementedError
