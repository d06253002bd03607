"""Lightning's Trainer with the checkpoints, loggers, progress bar and strategy of a run."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy

from lakeclip.config.schema import TrainerConfig
from lakeclip.training import sharding
from lakeclip.training.callbacks.checkpoint import AtomicCheckpointIO, CheckpointWriter
from lakeclip.training.callbacks.ema import AveragedWeights
from lakeclip.training.callbacks.evaluation import EvaluationClock
from lakeclip.training.callbacks.progress_bar import CompileTime, RunProgress
from lakeclip.training.callbacks.stopping import GracefulStop, ValidateAtEnd
from lakeclip.training.callbacks.throughput import Throughput

#: Lightning's names.
_PRECISION = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def make_trainer(
    config: TrainerConfig,
    folder: Path,
    *,
    loggers: Sequence[Logger],
    has_validation: bool,
    log_every: int,
    ema_decay: float | None = None,
    callbacks: Sequence[Callback] = (),
    evaluations: Sequence[Callback] = (),
) -> L.Trainer:
    """Make Lightning's Trainer with the checkpoints, loggers and progress bar of a run.

    Args:
        has_validation: the data module has validation rows.
        log_every: steps between two points of the curves.
        ema_decay: decay of the average of the weights; None for no average.
        callbacks: further callbacks whose time counts as training.
        evaluations: further callbacks whose time counts as evaluation.
    """
    throughput = Throughput(config.patch_dropout)
    best = ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename="best",
        monitor="val/loss" if has_validation else None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
        save_on_train_epoch_end=None if has_validation else True,
    )
    # The average is updated before anything is saved.
    ordered: list[Callback] = [AveragedWeights(ema_decay)] if ema_decay is not None else []
    # The best checkpoint comes before the last, which records the best score.
    ordered += [*callbacks, RunProgress(throughput), best, CheckpointWriter(folder, config)]
    ordered += [GracefulStop()] + ([ValidateAtEnd()] if has_validation else [])
    ordered += [CompileTime()] if config.compile else []
    # Behind the callbacks whose time counts as the step's.
    ordered += [throughput, EvaluationClock(), *evaluations]
    devices = _devices(config)
    return L.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=config.num_nodes,
        strategy=_sharding(devices, config.num_nodes) if config.strategy == sharding.STRATEGY else config.strategy,
        precision=_PRECISION[config.precision],  # type: ignore[arg-type]
        max_epochs=config.max_epochs,
        max_steps=config.max_steps if config.max_steps is not None else -1,
        # Lightning counts batches here; the data module gives whole steps of them.
        val_check_interval=config.val_every_steps * config.accumulate if config.val_every_steps else None,
        check_val_every_n_epoch=None if config.val_every_steps else 1,
        num_sanity_val_steps=0,
        limit_val_batches=None if has_validation else 0,
        log_every_n_steps=log_every * config.accumulate,
        callbacks=ordered,
        logger=list(loggers) or False,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _devices(config: TrainerConfig) -> int | str:
    """Return the devices of each machine as Lightning's argument `devices`."""
    # On a CPU one process uses every core, so all devices are one.
    on_cpu = config.accelerator == "cpu" or (config.accelerator == "auto" and not torch.cuda.is_available())
    # torchrun sets the number of processes that it starts on a machine.
    return config.devices or int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or (1 if on_cpu else "auto")


def world_size(config: TrainerConfig) -> int:
    """Return the number of devices of the run on all its machines."""
    each = _devices(config)
    return (max(1, torch.cuda.device_count()) if isinstance(each, str) else each) * config.num_nodes


def _sharding(devices: int | str, num_nodes: int) -> ModelParallelStrategy:
    """Return FSDP2 over all devices, with checkpoints in one ordinary file."""
    local = torch.cuda.device_count() if isinstance(devices, str) else devices
    return ModelParallelStrategy(local * num_nodes, tensor_parallel_size=1, save_distributed_checkpoint=False)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's greetings and tips; the run prints what matters itself."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                "(Experiment logs|Checkpoint) directory",
                ".*does not have many workers",
                ".*isinstance.treespec",
                "It is recommended to use `self.log.* when logging on epoch level in distributed",
                "You defined a `validation_step` but have no `val_dataloader`",
                "The number of training batches .* is smaller than the logging interval",
                "You're using the WeightAveraging callback with a model that overrides the configure_model",
                "MLFlow only allows",
                "OptimState8bit does not implement _stable_hash_for_caching",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
