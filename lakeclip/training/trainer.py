"""Lightning's trainer, as a run of ours has it: its checkpoints, logs, bars and strategy."""

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
from lakeclip.training.callbacks import CompileTime, GracefulStop, RunProgress, ValidateAtEnd
from lakeclip.training.ema import AveragedWeights
from lakeclip.training.recovery.saving import Saving, WholeFiles
from lakeclip.training.watching.scores import EvaluationClock
from lakeclip.training.watching.throughput import Throughput

#: Lightning's names.
_PRECISION = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def make_trainer(
    wanted: TrainerConfig,
    folder: Path,
    *,
    loggers: Sequence[Logger],
    has_validation: bool,
    log_every: int,
    ema_decay: float | None = None,
    more: Sequence[Callback] = (),
    scores: Sequence[Callback] = (),
) -> L.Trainer:
    """Lightning's trainer with the checkpoints, logs and bars of a run.

    Args:
        loggers: where the curves go.
        log_every: steps from one point of the curves to the next.
        ema_decay: of an average of the weights; None for none.
        more: callbacks of this run's own, whose work counts as training.
        scores: those whose work does not.
    """
    throughput = Throughput(wanted.patch_dropout)
    best = ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename="best",
        monitor="val/loss" if has_validation else None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
        save_on_train_epoch_end=None if has_validation else True,
    )
    # The average is brought up to date before anything is saved.
    callbacks: list[Callback] = [AveragedWeights(ema_decay)] if ema_decay is not None else []
    # The best before the last, which has to know its score.
    callbacks += [*more, RunProgress(throughput), best, Saving(folder, wanted)]
    callbacks += [GracefulStop()] + ([ValidateAtEnd()] if has_validation else [])
    callbacks += [CompileTime()] if wanted.compile else []
    # After those whose work on a step counts as the step's.
    callbacks += [throughput, EvaluationClock(), *scores]
    devices = _devices(wanted)
    return L.Trainer(
        accelerator=wanted.accelerator,
        devices=devices,
        num_nodes=wanted.num_nodes,
        strategy=_sharding(devices, wanted.num_nodes) if wanted.strategy == sharding.NAME else wanted.strategy,
        precision=_PRECISION[wanted.precision],  # type: ignore[arg-type]
        max_epochs=wanted.max_epochs,
        max_steps=wanted.max_steps if wanted.max_steps is not None else -1,
        # Lightning counts batches here, and the data module hands out whole steps of them.
        val_check_interval=wanted.val_every_steps * wanted.accumulate if wanted.val_every_steps else None,
        check_val_every_n_epoch=None if wanted.val_every_steps else 1,
        num_sanity_val_steps=0,
        limit_val_batches=None if has_validation else 0,
        log_every_n_steps=log_every * wanted.accumulate,
        callbacks=callbacks,
        logger=list(loggers) or False,
        plugins=[WholeFiles()],
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _devices(wanted: TrainerConfig) -> int | str:
    """Devices of each machine, in Lightning's words."""
    # On a CPU one process uses every core, so "all there are" is one.
    on_cpu = wanted.accelerator == "cpu" or (wanted.accelerator == "auto" and not torch.cuda.is_available())
    # What starts the processes of a node, torchrun, says how many they are.
    return wanted.devices or int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or (1 if on_cpu else "auto")


def world_size(wanted: TrainerConfig) -> int:
    """Devices of the run on all its machines."""
    each = _devices(wanted)
    return (max(1, torch.cuda.device_count()) if isinstance(each, str) else each) * wanted.num_nodes


def _sharding(devices: int | str, num_nodes: int) -> ModelParallelStrategy:
    """FSDP2 over all devices, with checkpoints in one file that anything reads."""
    local = torch.cuda.device_count() if isinstance(devices, str) else devices
    return ModelParallelStrategy(local * num_nodes, tensor_parallel_size=1, save_distributed_checkpoint=False)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's greetings and tips: what a run has to say, it says itself."""
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
