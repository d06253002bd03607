"""Step the schedulers of `configure_optimizers`, also a user's own, as Lightning's automatic optimisation does.

`ContrastiveModule` optimises manually, and Lightning then steps no scheduler and drops the metric that one monitors. So
the module's `configure_optimizers` is wrapped by `record_schedulers`, in subclasses too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import _configure_optimizers, _configure_schedulers_automatic_opt
from lightning.pytorch.utilities.types import LRSchedulerConfig

from lakeclip.errors import ConfigError
from lakeclip.training.optim.schedule import group_settings

Interval = Literal["step", "epoch"]


class SchedulerStepper:
    """Stepper of a module's schedulers: each at its interval and frequency, and with the metric that it monitors.

    A scheduler with the interval "step" counts optimiser steps, whatever the number of batches in a step.
    """

    def __init__(self) -> None:
        #: None until `configure_optimizers` was called.
        self._configs: list[LRSchedulerConfig] | None = None
        #: Settings of each parameter group, which a checkpoint does not override.
        self.group_settings: list[dict[str, Any]] = []
        #: Calls of `configure_optimizers` in progress: one that calls `super()` has two.
        self.depth = 0

    def read(self, module: L.LightningModule, returned: Any) -> Any:
        """Check what `configure_optimizers` returned, and return it in the form for manual optimisation.

        Raises:
            ConfigError: there are several optimisers, or one that needs a closure.
        """
        self._configs, self.group_settings = [], []
        if returned is None:
            return None
        optimizers, schedulers, monitor = _configure_optimizers(returned)
        check_optimizers(optimizers)
        # With a scheduler the learning rate is the first step's, and the initial one is beside it.
        self.group_settings = [
            {**settings, "lr": float(group.get("initial_lr", settings["lr"]))} if "lr" in settings else settings
            for settings, group in zip(group_settings(optimizers[0]), optimizers[0].param_groups, strict=True)
        ]
        self._configs = _configure_schedulers_automatic_opt(schedulers, monitor)
        if any(config.reduce_on_plateau and config.interval == "epoch" for config in self._configs):
            callbacks: list[Callback] = module.trainer.callbacks  # type: ignore[attr-defined]
            if not any(isinstance(callback, PlateauAtEpochEnd) for callback in callbacks):
                callbacks.append(PlateauAtEpochEnd())
        plain = [
            {name: getattr(config, name) for name in ("scheduler", "interval", "frequency", "name")}
            for config in self._configs
        ]
        return optimizers, plain

    def step(self, module: L.LightningModule, interval: Interval, *, on_plateau: bool) -> None:
        """Step the schedulers that are due.

        Args:
            interval: what has just ended.
            on_plateau: step those that monitor a metric, or the others.

        Raises:
            ConfigError: nothing logged the metric that a scheduler monitors.
        """
        trainer = module.trainer
        done = trainer.global_step if interval == "step" else trainer.current_epoch + 1
        for config in self._configs_of(trainer):
            if config.interval != interval or config.reduce_on_plateau != on_plateau or done % config.frequency:
                continue
            metric = None
            if config.reduce_on_plateau:
                metric = trainer.callback_metrics.get(str(config.monitor))
                if metric is None and not config.strict:
                    continue
                if metric is None:
                    raise ConfigError(
                        f"a learning-rate scheduler monitors {config.monitor!r}, which nothing has logged yet",
                        found=", ".join(sorted(trainer.callback_metrics)) or "no metrics",
                        allowed="a metric that is logged before the scheduler is due",
                        next_step='another "monitor", or "strict": False in the scheduler\'s dict to wait for it',
                    )
            module.lr_scheduler_step(config.scheduler, metric)

    def _configs_of(self, trainer: L.Trainer) -> list[LRSchedulerConfig]:
        if self._configs is not None:
            return self._configs
        # `configure_optimizers` was replaced on the instance, so Lightning alone has seen its result.
        check_optimizers(trainer.optimizers)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                raise ConfigError(
                    "the metric that ReduceLROnPlateau monitors is unknown",
                    found="configure_optimizers was replaced on the module itself",
                    next_step="define configure_optimizers in a subclass",
                )
        return trainer.lr_scheduler_configs


class PlateauAtEpochEnd(Callback):
    """Callback that steps the schedulers which monitor a metric, at the end of an epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stepper = getattr(pl_module, "scheduler_stepper", None)
        loop = trainer.fit_loop
        if (
            isinstance(stepper, SchedulerStepper)
            and not loop.restarting
            and loop.epoch_loop._num_ready_batches_reached()
        ):
            stepper.step(pl_module, "epoch", on_plateau=True)


def record_schedulers(configure: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `configure_optimizers` so that the module's `SchedulerStepper` reads what it returns."""

    @functools.wraps(configure)
    def recorded(module: Any) -> Any:
        stepper: SchedulerStepper = module.scheduler_stepper
        stepper.depth += 1
        try:
            returned = configure(module)
        finally:
            stepper.depth -= 1
        return returned if stepper.depth else stepper.read(module, returned)

    return recorded


def check_optimizers(optimizers: Sequence[Any]) -> None:
    """Raise unless there is one optimiser, which the training step can use.

    Raises:
        ConfigError: there are several optimisers, none, or one that needs a closure.
    """
    if len(optimizers) != 1:
        raise ConfigError(
            "the training step updates all weights by one optimiser",
            found=f"configure_optimizers returned {len(optimizers)}",
            allowed="one",
            next_step="one optimiser with a group of parameters for each learning rate: "
            "AdamW([{'params': …, 'lr': 1e-5}, {'params': …, 'lr': 1e-4}])",
        )
    if isinstance(optimizers[0], torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS computes the loss several times in a step, which the training step cannot do",
            found="configure_optimizers returned LBFGS",
            allowed="an optimiser whose step() needs no closure, such as AdamW or SGD",
        )


def check_trainer(trainer: L.Trainer) -> None:
    """Raise for the trainer's settings that Lightning applies to automatic optimisation only.

    Raises:
        ConfigError: `gradient_clip_val` or `accumulate_grad_batches` is set.
    """
    if trainer.gradient_clip_val:
        by_value = str(getattr(trainer, "gradient_clip_algorithm", "") or "").lower().endswith("value")
        raise ConfigError(
            "the module steps its optimiser itself (manual optimisation), so the trainer cannot clip gradients",
            found=f"Trainer(gradient_clip_val={trainer.gradient_clip_val})",
            allowed="gradient_clip_val=None",
            next_step="torch.nn.utils.clip_grad_value_ in the module's on_before_optimizer_step"
            if by_value
            else f"give the module optimizer=lakeclip.OptimizerConfig(max_grad_norm={trainer.gradient_clip_val}), or "
            "FinetuneOptimizerConfig if it fine-tunes; your own configure_optimizers stays in force",
        )
    if trainer.accumulate_grad_batches != 1:
        number = trainer.accumulate_grad_batches
        raise ConfigError(
            "the module steps its optimiser itself (manual optimisation), so the trainer cannot accumulate gradients",
            found=f"Trainer(accumulate_grad_batches={number})",
            allowed="accumulate_grad_batches=1",
            next_step=f"give the module accumulate={number}; or a larger batch and a minibatch_size, which compares "
            "all its pairs in the same memory",
        )
