"""A whole run: from a configuration to a folder with checkpoints, curves and the configuration itself."""

from __future__ import annotations

import csv
import errno
import logging
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
from lightning.pytorch.utilities import rank_zero_only

from lakeclip.checkpoints.native import LAST, read_checkpoint
from lakeclip.config.command import command
from lakeclip.config.load import write_config
from lakeclip.config.schema import DataConfig, FinetuneConfig, ModelConfig, TrainConfig, TrainerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.quarantine import read_quarantine
from lakeclip.errors import DeviceError, ModelError, OutputError
from lakeclip.lake.mark import mark_unusable
from lakeclip.lake.pairs import describe, open_pairs
from lakeclip.models.pretrained import load_image_encoder, load_text_encoder
from lakeclip.models.zoo import model_config
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.callbacks import GracefulStop, LastCheckpoint, RunProgress, Stopped, Throughput, ValidateAtEnd
from lakeclip.training.eight_bit import require_torchao
from lakeclip.training.finetune import CustomCLIPWrapper
from lakeclip.training.module import CLIPWrapper, ContrastiveModule
from lakeclip.training.optimizers import state_bytes
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
    """

    folder: Path
    steps: int
    seconds: float
    interrupted: bool
    is_main: bool


def train(config: TrainConfig, *, resume: Path | None = None, token: str | None = None) -> FinishedRun:
    """Train from scratch, or go on with an earlier run.

    Everything that can be wrong with the input is found before the first step.

    Args:
        resume: folder of the run to go on with; its last checkpoint gives weights, optimiser state and position.
        token: for lakes that ask for one. It is not kept.

    Raises:
        LakeclipError: of the kind that says what is wrong: configuration, model, data, device, checkpoint or output.
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
    checkpoint = None
    if resume is not None:
        checkpoint = resume / LAST
        read_checkpoint(checkpoint, expect=sizes)
    datamodule = make_datamodule(config.data, sizes.image_resolution, Tokenizer(sizes.context_length), token=token)
    datamodule.setup("fit")
    folder = _run_folder(config.trainer, config.model, resume)
    _show(datamodule, folder)

    L.seed_everything(config.data.seed, verbose=False)
    module = CLIPWrapper(config.model, sizes, config.trainer.minibatch_size, optimizer=config.optimizer)
    module.run_config = replace(config, optimizer=module.optimizer_config)
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
    check_devices(config)
    text = load_text_encoder(config.text_encoder)
    image_encoder = load_image_encoder(config.image_encoder)
    tokenize = HuggingFaceTokenizer(text.tokenizer)
    image_size = config.data.image_size or 224
    datamodule = make_datamodule(config.data, image_size, tokenize, token=token)
    datamodule.setup("fit")
    folder = _run_folder(config.trainer, "finetune", None)
    _show(datamodule, folder)
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
    finished = _fit(module, datamodule, config.trainer, folder, None)
    _account(finished, config.data)
    return finished


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
    interrupted = False
    started = time.perf_counter()
    with _quiet_lightning():
        # A point in the curves for every step of a short run; reading the loss off a GPU at each of many costs time.
        trainer = make_trainer(
            config,
            folder,
            has_validation=datamodule.has_validation,
            log_every=1 if datamodule.steps_per_epoch < 200 else 10,
        )
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        except Stopped:
            interrupted = True
        except (OSError, RuntimeError) as error:
            raise _explain_disk(error, folder) from error
    return FinishedRun(folder, trainer.global_step, time.perf_counter() - started, interrupted, trainer.is_global_zero)


def sized_model(config: TrainConfig) -> ModelConfig:
    """The model's sizes, at the image size that was asked for."""
    sizes = model_config(config.model, config.model_config)
    return replace(sizes, image_resolution=config.data.image_size) if config.data.image_size else sizes


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
        resize_ratio=data.resize_ratio,
        shuffle=data.shuffle,
        num_workers=data.num_workers,
        seed=data.seed,
        val_source=open_pairs(DataConfig(lake=data.val_lake), token=token) if data.val_lake else None,
        val_fraction=data.val_fraction,
        max_val_rows=data.max_val_rows,
        tokenize=tokenize,
    )


def make_trainer(wanted: TrainerConfig, folder: Path, *, has_validation: bool, log_every: int) -> L.Trainer:
    """Lightning's trainer with the checkpoints, logs and bars of a run."""
    throughput = Throughput()
    best = ModelCheckpoint(
        dirpath=folder / "checkpoints",
        filename="best",
        monitor="val/loss" if has_validation else None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
        save_on_train_epoch_end=None if has_validation else True,
    )
    callbacks: list[Callback] = [throughput, RunProgress(throughput), best]
    callbacks += [LastCheckpoint(folder / LAST, within_epochs=wanted.val_every_steps is not None)]
    callbacks += [GracefulStop(folder / LAST)] + ([ValidateAtEnd()] if has_validation else [])
    loggers: list[Logger] = [_curves(folder), TensorBoardLogger(folder, name="", version="tensorboard")]
    # On a CPU one process uses every core, so "all there are" is one.
    on_cpu = wanted.accelerator == "cpu" or (wanted.accelerator == "auto" and not torch.cuda.is_available())
    return L.Trainer(
        accelerator=wanted.accelerator,
        devices=wanted.devices or (1 if on_cpu else "auto"),
        num_nodes=wanted.num_nodes,
        strategy=wanted.strategy,
        precision=_PRECISION[wanted.precision],  # type: ignore[arg-type]
        max_epochs=wanted.max_epochs,
        max_steps=wanted.max_steps if wanted.max_steps is not None else -1,
        val_check_interval=wanted.val_every_steps,
        check_val_every_n_epoch=None if wanted.val_every_steps else 1,
        num_sanity_val_steps=0,
        limit_val_batches=None if has_validation else 0,
        log_every_n_steps=log_every,
        callbacks=callbacks,
        logger=loggers,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


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
def _quiet_lightning() -> Iterator[None]:
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
                "You defined a `validation_step` but have no `val_dataloader`",
                "The number of training batches .* is smaller than the logging interval",
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
