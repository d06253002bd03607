"""A whole run: from a configuration to a folder with checkpoints, curves and the configuration itself."""

from __future__ import annotations

import csv
import errno
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lakeclip.checkpoints.native import LAST, read_checkpoint
from lakeclip.config.command import command
from lakeclip.config.load import write_config
from lakeclip.config.schema import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.quarantine import read_quarantine
from lakeclip.data.sizes import parse_sizes
from lakeclip.errors import ConfigError, DeviceError, ModelError, OutputError
from lakeclip.lake.mark import mark_unusable
from lakeclip.lake.pairs import describe, open_pairs
from lakeclip.models.clip import CLIP
from lakeclip.models.pretrained import load_image_encoder, load_text_encoder
from lakeclip.models.recompute import set_recompute
from lakeclip.models.vision_transformer import VisionTransformer
from lakeclip.models.zoo import model_config
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training import sharding
from lakeclip.training.callbacks import CompileTime, GracefulStop, LastCheckpoint, RunProgress, Stopped, ValidateAtEnd
from lakeclip.training.eight_bit import require_torchao
from lakeclip.training.ema import AveragedWeights
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.guard import Guard
from lakeclip.training.module import CLIPWrapper, ContrastiveModule
from lakeclip.training.optimizers import state_bytes
from lakeclip.training.throughput import Speed, Throughput
from lakeclip.types import Tokenize

#: Where a run lists the rows that it could not use.
QUARANTINE = "quarantine.jsonl"

#: Lightning's names.
_PRECISION = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class FinishedRun:
    """What `train` leaves.

    Attributes:
        folder: config.yaml, metrics.csv, tensorboard/, checkpoints/{best,last}.ckpt.
        steps: optimiser steps taken in all, those before a resume included.
        seconds: wall-clock time of this part of the run.
        interrupted: it was stopped by a signal, and `resume` goes on from there.
        is_main: this process is the first of the run, the one that reports.
        speed: on average, the first step left out; None where there was no step.
    """

    folder: Path
    steps: int
    seconds: float
    interrupted: bool
    is_main: bool
    speed: Speed | None = None


def train(config: TrainConfig, *, resume: Path | None = None, token: str | None = None) -> FinishedRun:
    """Train from scratch, or go on with an earlier run.

    Everything that can be wrong with the input is found before the first step.

    Args:
        resume: folder of the run to go on with; its last checkpoint gives weights, optimiser state and position.
        token: for lakes that ask for one. It is not kept.

    Raises:
        LakeclipError: of the kind that says what is wrong: configuration, model, data, device, checkpoint or output.
    """
    sizes = checked_sizes(config)
    checkpoint = None
    if resume is not None:
        checkpoint = resume / LAST
        if read_checkpoint(checkpoint, expect=sizes).is_sigmoid != (config.loss.objective == "sigmoid"):
            raise ConfigError(
                f"{resume} cannot go on with another objective",
                found=f"objective {config.loss.objective}",
                allowed="the one that the run began with",
            )
    datamodule = make_datamodule(config.data, sizes.image_resolution, Tokenizer(sizes.context_length), token=token)
    datamodule.setup("fit")
    folder = _run_folder(config.trainer, config.model, resume)
    _show(datamodule, folder)

    module = make_module(config, sizes)
    if _is_main():
        write_config(config, folder / "config.yaml")
    finished = _fit(module, datamodule, config.trainer, folder, checkpoint)
    _account(finished, config.data)
    return finished


def finetune(config: FinetuneConfig, *, token: str | None = None) -> FinishedRun:
    """Train two pretrained towers on one's own pairs.

    Raises:
        LakeclipError: as `train`; also where a tower cannot be had.
    """
    module, datamodule = finetune_parts(config, token=token)
    folder = _run_folder(config.trainer, "finetune", None)
    _show(datamodule, folder)
    finished = _fit(module, datamodule, config.trainer, folder, None)
    _account(finished, config.data)
    return finished


def checked_sizes(config: TrainConfig) -> ModelConfig:
    """The model's sizes, once what was asked for is known to be possible here.

    Raises:
        ModelError: the model is unknown, or its vocabulary too small.
        DeviceError: see `check_devices`.
        ConfigError: settings that do not go together, or not with this model.
    """
    sizes = sized_model(config)
    if sizes.vocab_size < Tokenizer.vocab_size:
        raise ModelError(
            f"the vocabulary of {config.model} is too small for the tokenizer",
            found=f"vocab_size {sizes.vocab_size}",
            allowed=f"{Tokenizer.vocab_size} or more: CLIP's tokenizer has as many ids",
        )
    check_devices(config)
    if config.optimizer.states == "8bit":
        require_torchao()
    check_together(config.optimizer, config.trainer)
    if config.trainer.patch_dropout and sizes.vision_patch_size is None:
        raise ConfigError(
            f"patch_dropout {config.trainer.patch_dropout} is asked for, and {config.model} has no patches",
            allowed="0, or a vision transformer",
        )
    cell = sizes.vision_patch_size or 32
    for side, _ in parse_sizes(config.data.small_images, sizes.image_resolution).stages:
        if side % cell:
            raise ConfigError(
                f"{config.model} cannot take images of {side} pixels",
                found=f"small_images {config.data.small_images!r}",
                allowed=f"multiples of {cell} below {sizes.image_resolution}",
            )
    return sizes


def make_module(config: TrainConfig, sizes: ModelConfig) -> CLIPWrapper:
    """What `train` trains, with the initial weights of the configuration's seed."""
    L.seed_everything(config.data.seed, verbose=False)
    module = CLIPWrapper(
        config.model, sizes, config.trainer.minibatch_size, optimizer=config.optimizer, loss=config.loss
    )
    module.run_config = replace(config, optimizer=module.optimizer_config)
    assert isinstance(module.model, CLIP)
    visual: nn.Module = module.model.visual
    if isinstance(visual, VisionTransformer):
        visual.patch_dropout = config.trainer.patch_dropout
    set_recompute(module.model, config.trainer.checkpointing)
    if config.trainer.compile:
        # Its shapes stay what they are; those of the text tower change with every batch's captions.
        visual.compile()
    return module


def finetune_parts(config: FinetuneConfig, *, token: str | None = None) -> tuple[CustomCLIPWrapper, PairDataModule]:
    """What `finetune` trains, and on what; both are checked.

    Raises:
        LakeclipError: a tower, the data or a device cannot be had.
    """
    check_devices(config)
    for name in ("checkpointing", "patch_dropout", "compile"):
        if getattr(config.trainer, name) != getattr(TrainerConfig, name):
            raise ConfigError(
                f"{name} is asked for, and fine-tuning trains towers that lakeclip did not make",
                found=f"{name} {getattr(config.trainer, name)}",
                allowed="lakeclip train, or the tower's own way before it is handed over",
            )
    text = load_text_encoder(config.text_encoder)
    image_encoder = load_image_encoder(config.image_encoder)
    tokenize = HuggingFaceTokenizer(text.tokenizer)
    image_size = config.data.image_size or 224
    datamodule = make_datamodule(config.data, image_size, tokenize, token=token)
    datamodule.setup("fit")
    L.seed_everything(config.data.seed, verbose=False)
    module = CustomCLIPWrapper(
        image_encoder,
        text.model,
        config.trainer.minibatch_size,
        config.lr,
        avg_word_embs=config.average_word_embeddings,
        embed_dim=config.embed_dim,
        image_size=image_size,
    )
    return module, datamodule


def _show(datamodule: PairDataModule, folder: Path) -> None:
    """Say what is about to be trained on, and have what cannot be used listed in the run's folder."""
    datamodule.list_unusable(folder / QUARANTINE)
    if _is_main():
        sys.stdout.write(describe(datamodule.source))
        sys.stdout.flush()


def _account(finished: FinishedRun, data: DataConfig) -> None:
    """Say how many rows could not be used, and mark them in their lakes where that is asked for."""
    unusable = read_quarantine(finished.folder / QUARANTINE)
    if not unusable or not finished.is_main:
        return
    for path, reasons in unusable.items():
        sys.stdout.write(f"{len(reasons):,} rows of {path} could not be used: {finished.folder / QUARANTINE}\n")
        if data.mark_unusable and data.folder is None:
            sys.stdout.write(f"  marked in the lake: {mark_unusable(path, reasons):,}\n")


def _fit(
    module: ContrastiveModule,
    datamodule: PairDataModule,
    config: TrainerConfig,
    folder: Path,
    checkpoint: Path | None,
) -> FinishedRun:
    if _is_main():
        _check_disk(folder, module)
    torch.set_float32_matmul_precision("high")
    module.accumulate = datamodule.batches_per_step = config.accumulate
    module.guard = Guard(config.max_skipped, folder)
    interrupted = False
    started = time.perf_counter()
    with quiet_lightning():
        # A point in the curves for every step of a short run; reading the loss off a GPU at each of many costs time.
        trainer = make_trainer(
            config,
            folder,
            has_validation=datamodule.has_validation,
            log_every=1 if datamodule.steps_per_epoch < 200 else 10,
            ema_decay=module.optimizer_config.ema_decay,
        )
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        except Stopped:
            interrupted = True
        except (OSError, RuntimeError) as error:
            raise _explain_disk(error, folder) from error
    (throughput,) = [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]  # type: ignore[attr-defined]
    return FinishedRun(
        folder,
        trainer.global_step,
        time.perf_counter() - started,
        interrupted,
        trainer.is_global_zero,
        throughput.average(),
    )


def sized_model(config: TrainConfig) -> ModelConfig:
    """The model's sizes, at the image size that was asked for."""
    sizes = model_config(config.model, config.model_config)
    return replace(sizes, image_resolution=config.data.image_size) if config.data.image_size else sizes


def check_together(optimizer: OptimizerConfig, trainer: TrainerConfig) -> None:
    """Say before anything is built which settings do not go together.

    Raises:
        ConfigError: an average of weights that are cut up between devices; a compiled model with checkpointing.
    """
    if optimizer.ema_decay is not None and trainer.strategy == sharding.NAME:
        raise ConfigError(
            "an average of the weights (ema_decay) is asked for together with --strategy fsdp2",
            found="weights that no device holds whole",
            allowed="--strategy ddp with ema_decay, or fsdp2 without",
        )
    if optimizer.text_weights != "32" and trainer.strategy == sharding.NAME:
        raise ConfigError(
            "text weights in bf16 are asked for together with --strategy fsdp2",
            found="towers of two types, which are cut up as one",
            allowed="--strategy ddp with bf16 text weights, or fsdp2 without",
        )
    if trainer.compile and trainer.checkpointing != "off":
        raise ConfigError(
            "a compiled model is asked for together with checkpointing",
            found=f"checkpointing {trainer.checkpointing}",
            allowed="one of the two: compiling decides itself what is computed again",
        )


def check_devices(config: TrainConfig | FinetuneConfig) -> None:
    """Say before anything is built what cannot be had on this machine, with the command that would work.

    Raises:
        DeviceError: a GPU, a number of GPUs, or float16 arithmetic that is not there.
    """
    wanted, found = config.trainer, torch.cuda.device_count()
    here = f"{found} GPU{'s' * (found != 1)}" if found else "no GPU"
    without_gpu = wanted.accelerator == "gpu" and not found and not torch.backends.mps.is_available()
    if without_gpu:
        what = f"{wanted.devices or 1} GPU(s) asked for (accelerator gpu), and this machine has none"
        able = replace(wanted, accelerator="cpu", devices=None, strategy="auto", precision="32")
    elif wanted.accelerator == "gpu" and found and (wanted.devices or 0) > found:
        what, able = f"{wanted.devices} GPUs are asked for", replace(wanted, devices=found)
    elif wanted.precision == "16" and not found:
        what, able = "float16 is asked for (precision 16), which needs a GPU", replace(wanted, precision="bf16")
    else:
        return
    raise DeviceError(what, found=here, next_step=command(replace(config, trainer=able)))


def make_datamodule(
    data: DataConfig, image_size: int, tokenize: Tokenize, *, token: str | None = None
) -> PairDataModule:
    """The data module for a configuration: sources opened, columns found, nothing read yet."""
    return PairDataModule(
        open_pairs(data, token=token),
        batch_size=data.batch_size,
        image_size=image_size,
        small_images=data.small_images,
        resize_ratio=data.resize_ratio,
        shuffle=data.shuffle,
        num_workers=data.num_workers,
        seed=data.seed,
        val_source=open_pairs(DataConfig(lake=data.val_lake, same_by=data.same_by), token=token)
        if data.val_lake
        else None,
        val_fraction=data.val_fraction,
        max_val_rows=data.max_val_rows,
        same_by=data.same_by,
        tokenize=tokenize,
    )


def make_trainer(
    wanted: TrainerConfig, folder: Path, *, has_validation: bool, log_every: int, ema_decay: float | None = None
) -> L.Trainer:
    """Lightning's trainer with the checkpoints, logs and bars of a run.

    Args:
        log_every: steps from one point of the curves to the next.
        ema_decay: of an average of the weights; None for none.
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
    callbacks += [RunProgress(throughput), best]
    callbacks += [LastCheckpoint(folder / LAST, within_epochs=wanted.val_every_steps is not None)]
    callbacks += [GracefulStop(folder / LAST)] + ([ValidateAtEnd()] if has_validation else [])
    callbacks += [CompileTime()] if wanted.compile else []
    # Last, so that the work of the others on a step counts as the step's.
    callbacks += [throughput]
    loggers: list[Logger] = [_curves(folder), TensorBoardLogger(folder, name="", version="tensorboard")]
    # On a CPU one process uses every core, so "all there are" is one.
    on_cpu = wanted.accelerator == "cpu" or (wanted.accelerator == "auto" and not torch.cuda.is_available())
    # What starts the processes of a node, torchrun, says how many they are.
    devices = wanted.devices or int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or (1 if on_cpu else "auto")
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
        logger=loggers,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _sharding(devices: int | str, num_nodes: int) -> ModelParallelStrategy:
    """FSDP2 over all devices, with checkpoints in one file that anything reads."""
    local = torch.cuda.device_count() if isinstance(devices, str) else devices
    return ModelParallelStrategy(local * num_nodes, tensor_parallel_size=1, save_distributed_checkpoint=False)


def _is_main() -> bool:
    """Whether this process is the first of the run, known from the environment before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def _curves(folder: Path) -> CSVLogger:
    """metrics.csv, with what an earlier part of the run wrote up to its last checkpoint: Lightning would delete it."""
    path, checkpoint = folder / "metrics.csv", folder / LAST
    rows: list[dict[str, str]] = []
    if _is_main() and path.exists() and checkpoint.exists():
        reached = read_checkpoint(checkpoint).lineage["progress"]["step"]
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < reached]
    logger = CSVLogger(folder, name="", version="")
    if rows:
        logger.experiment.metrics.extend({name: value for name, value in row.items() if value} for row in rows)
        logger.save()
    return logger


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
                "OptimState8bit does not implement _stable_hash_for_caching",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _run_folder(config: TrainerConfig, model: str, resume: Path | None) -> Path:
    name = config.name or f"{model.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = resume or Path(config.runs) / name
    if not _is_main():
        return folder  # the first process alone writes
    if resume is None and (folder / LAST).exists():
        raise OutputError(
            f"the folder {folder} holds a run already",
            next_step=f"lakeclip train --resume {folder} to go on with it, or another --name",
        )
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"the run's folder {folder} cannot be written", found=error.strerror or str(error)) from None
    return folder


def _check_disk(folder: Path, module: ContrastiveModule) -> None:
    """Weights and two moments, for the best checkpoint, the last, and the one being written."""
    states = state_bytes(module.optimizer_config)
    needed = 3 * sum(p.numel() * (p.element_size() + states) for p in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the disk of {folder} is too full for this run's checkpoints",
            found=f"{free / 1e9:.2f} GB free",
            allowed=f"{needed / 1e9:.2f} GB: best, last, and the next while it is written",
            next_step="make room, or give --runs a folder on another disk",
        )


def _explain_disk(error: OSError | RuntimeError, folder: Path) -> BaseException:
    full = getattr(error, "errno", None) == errno.ENOSPC or "PytorchStreamWriter" in str(error)
    if not full:
        return error
    return OutputError(
        f"a checkpoint could not be written to {folder}: the disk is full",
        found=f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free",
        next_step=f"make room, then lakeclip train --resume {folder}",
    )
