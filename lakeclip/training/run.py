"""A whole run: from a configuration to a folder with checkpoints, curves and the configuration itself."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from lightning.pytorch.callbacks import Callback

from lakeclip.checkpoints.folder import BEST, CONFIG, LAST
from lakeclip.checkpoints.native import Checkpoint, newest_checkpoint
from lakeclip.config.load import config_to_dict, read_recipe, write_config
from lakeclip.config.schema import DataConfig, FinetuneConfig, ModelConfig, TrainConfig, TrainerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.quarantine import QUARANTINE, read_quarantine
from lakeclip.errors import ConfigError, LakeclipError, OutputError
from lakeclip.lake.mark import mark_unusable
from lakeclip.lake.pairs import describe
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.callbacks import GracefulStop, StopAt, Stopped
from lakeclip.training.checks import checked_sizes
from lakeclip.training.guard import Guard
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.optimizers import state_bytes
from lakeclip.training.parts import finetune_parts, make_datamodule, make_module
from lakeclip.training.recovery.faults import explained, full_disks_are_not_for_threads
from lakeclip.training.recovery.ranks import Ranks
from lakeclip.training.recovery.repeat import Past
from lakeclip.training.trainer import make_trainer, quiet_lightning, world_size
from lakeclip.training.watching.keeping import keeping_of
from lakeclip.training.watching.loggers import check_trackers, end_loggers, is_main, make_loggers
from lakeclip.training.watching.scores import EvaluationCallback, EvaluationClock
from lakeclip.training.watching.throughput import Speed, Throughput


@dataclass(frozen=True)
class FinishedRun:
    """What `train` leaves.

    Attributes:
        folder: config.yaml, metrics.csv, tensorboard/, checkpoints/{best,last}.ckpt.
        steps: optimiser steps taken in all, those before a resume included.
        seconds: wall-clock time of this part of the run.
        interrupted: it was stopped by a signal, and `resume` goes on from there.
        signal: which one, where this process had it.
        is_main: this process is the first of the run, the one that reports.
        speed: on average, the first step left out; None where there was no step.
        evaluation: share of `seconds` in which the model was validated and scored.
        scores: the last ones on --eval-lake.
    """

    folder: Path
    steps: int
    seconds: float
    interrupted: bool
    is_main: bool
    speed: Speed | None = None
    evaluation: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    signal: int | None = None


def train(
    config: TrainConfig, *, resume: Path | None = None, token: str | None = None, past: Past | None = None
) -> FinishedRun:
    """Train from scratch, or go on with an earlier run.

    Everything that can be wrong with the input is found before the first step.

    Args:
        resume: folder of the run to go on with; its newest whole checkpoint gives weights, optimiser state and
            position. A run that was cut off before it had one begins anew.
        token: for lakes that ask for one. It is not kept.
        past: a run to repeat: its model and version of the data, up to its step.

    Raises:
        LakeclipError: of the kind that says what is wrong: configuration, model, data, device, checkpoint or output.
    """
    known = past.checkpoint.model_config if past else None
    sizes = checked_sizes(config, known if isinstance(known, ModelConfig) else None)
    checkpoint = _reached(resume)
    if resume and checkpoint:
        checkpoint.expect(sizes)
        if checkpoint.is_sigmoid != (config.loss.objective == "sigmoid"):
            raise ConfigError(
                f"{resume} cannot go on with another objective",
                found=f"objective {config.loss.objective}",
                allowed="the one that the run began with",
            )
        config = same_global_batches(config, checkpoint, read_recipe(resume / CONFIG, type(config)))
    words, version = Tokenizer(sizes.context_length), past.version if past else None
    datamodule = make_datamodule(config.data, sizes.image_resolution, words, token=token, version=version)
    datamodule.setup("fit")
    scores = _scores(config)
    folder = _run_folder(config.trainer, config.model, resume)
    _show(datamodule, folder)

    module = make_module(config, sizes)
    if is_main():
        write_config(config, folder / CONFIG)
    finished = _fit(module, datamodule, config, folder, checkpoint, callbacks=_stop(past, folder), scores=scores)
    _account(finished, config.data)
    return finished


def finetune(
    config: FinetuneConfig, *, resume: Path | None = None, token: str | None = None, past: Past | None = None
) -> FinishedRun:
    """Train two pretrained towers, or a whole CLIP, on one's own pairs.

    Args:
        resume: folder of the run to go on with.
        past: a run to repeat: its version of the data, up to its step.

    Raises:
        LakeclipError: as `train`; also where a tower cannot be had.
    """
    checkpoint = _reached(resume)
    if resume and checkpoint:
        config = same_global_batches(config, checkpoint, read_recipe(resume / CONFIG, type(config)))
    module, datamodule = finetune_parts(config, token=token, version=past.version if past else None)
    if past:
        past.check_start(module.start)
    keeping = keeping_of(config.keep, datamodule) if config.keep.keep_lake else None
    scores = _scores(config)
    folder = _run_folder(config.trainer, f"finetuned-{_short(module.model_name)}", resume, verb="finetune")
    _show(datamodule, folder)
    if is_main():
        write_config(config, folder / CONFIG)
    callbacks = [*_stop(past, folder), *([keeping] if keeping else [])]
    finished = _fit(module, datamodule, config, folder, checkpoint, callbacks=callbacks, scores=scores)
    _account(finished, config.data)
    return finished


def _reached(resume: Path | None) -> Checkpoint | None:
    """Where the run to go on with stands."""
    if resume is None:
        return None
    checkpoint = newest_checkpoint(resume)
    if checkpoint is None and is_main():
        sys.stdout.write(f"{resume} has no checkpoint yet: beginning anew\n")
    return checkpoint


_Config = TypeVar("_Config", TrainConfig, FinetuneConfig)


def same_global_batches(config: _Config, checkpoint: Checkpoint, saved: _Config) -> _Config:
    """A configuration that makes, on the devices there are, the global batches that the run had before.

    Nothing is changed where another batch size is asked for.

    Args:
        checkpoint: where the run stands.
        saved: the run's own configuration, which says what is asked for anew.

    Raises:
        ConfigError: the global batch cannot be divided between the devices.
    """
    before = checkpoint.lineage["progress"].get("world_size", 1)
    size = checkpoint.lineage["config"]["data"]["batch_size"]
    now = world_size(config.trainer)
    if config.data.batch_size != saved.data.batch_size or now * config.data.batch_size == before * size:
        return config
    each, rest = divmod(before * size, now)
    if rest:
        raise ConfigError(
            f"the run's global batches of {before * size} pairs cannot be divided between {now} devices",
            allowed="a number of devices that divides it",
            next_step=f"--batch-size {each} for batches of {each * now} from here on",
        )
    # What fits a device's memory still does.
    at_once = min(config.trainer.minibatch_size or size, each)
    if is_main():
        devices = f"{now} device{'s' * (now > 1)}, {before} before"
        sys.stdout.write(f"{devices}: {each} pairs on each, for the same batches of {each * now}\n")
    return replace(
        config,
        data=replace(config.data, batch_size=each),
        trainer=replace(config.trainer, minibatch_size=at_once if at_once < each else None),
    )


def _stop(past: Past | None, folder: Path) -> list[Callback]:
    """What ends a repetition where the checkpoint is."""
    return [StopAt(past.step, folder / LAST, world_size=past.world_size)] if past else []


def _scores(config: TrainConfig | FinetuneConfig) -> list[Callback]:
    """What is scored on the way, and the trackers that hear of it: found wanting here, not at the first step."""
    check_trackers(config.trainer.track)
    return [EvaluationCallback(config.evaluation)] if config.evaluation.eval_lake else []


def _short(name: str) -> str:
    """Of a model's name what can stand in that of a folder."""
    return "-".join(re.findall(r"[A-Za-z0-9_.]+", name))[-60:]


def _show(datamodule: PairDataModule, folder: Path) -> None:
    """Say what is about to be trained on, and have what cannot be used listed in the run's folder."""
    datamodule.list_unusable(folder / QUARANTINE)
    if is_main():
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
    config: TrainConfig | FinetuneConfig,
    folder: Path,
    checkpoint: Checkpoint | None,
    *,
    callbacks: Sequence[Callback] = (),
    scores: Sequence[Callback] = (),
) -> FinishedRun:
    if is_main():
        _check_disk(folder, module, config.trainer.keep_last)
    torch.set_float32_matmul_precision("high")
    module.accumulate = datamodule.batches_per_step = config.trainer.accumulate
    module.guard = Guard(config.trainer.max_skipped, folder)
    interrupted = False
    verb = "train" if isinstance(config, TrainConfig) else "finetune"
    ranks = Ranks(lambda error: explained(error, folder, verb=verb))
    started = time.perf_counter()
    with quiet_lightning(), full_disks_are_not_for_threads():
        reached = checkpoint.lineage["progress"]["step"] if checkpoint else 0
        loggers = make_loggers(config.trainer.track, folder, config_to_dict(config), reached=reached)
        # A point in the curves for every step of a short run; reading the loss off a GPU at each of many costs time.
        trainer = make_trainer(
            config.trainer,
            folder,
            loggers=loggers,
            has_validation=datamodule.has_validation,
            log_every=1 if datamodule.steps_per_epoch < 200 else 10,
            ema_decay=module.optimizer_config.ema_decay,
            more=[ranks, *callbacks],
            scores=scores,
        )
        try:
            path = checkpoint.path if checkpoint else None
            trainer.fit(module, datamodule=datamodule, ckpt_path=path, weights_only=True)
        except Stopped:
            interrupted = True
        except (OSError, RuntimeError, LakeclipError) as error:
            raise explained(error, folder, verb=verb, ranks=ranks) from error
        finally:
            ranks.end()
            end_loggers(loggers)
    seconds = time.perf_counter() - started
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    (throughput,) = [callback for callback in callbacks if isinstance(callback, Throughput)]
    (clock,) = [callback for callback in callbacks if isinstance(callback, EvaluationClock)]
    (stop,) = [callback for callback in callbacks if isinstance(callback, GracefulStop)]
    return FinishedRun(
        folder,
        trainer.global_step,
        seconds,
        interrupted,
        trainer.is_global_zero,
        throughput.average(),
        evaluation=clock.seconds / seconds,
        scores=next((callback.latest for callback in callbacks if isinstance(callback, EvaluationCallback)), {}),
        signal=stop.received,
    )


def _run_folder(config: TrainerConfig, model: str, resume: Path | None, *, verb: str = "train") -> Path:
    name = config.name or f"{model.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = resume or Path(config.runs) / name
    if not is_main():
        return folder  # the first process alone writes
    if resume is None and (folder / LAST).exists():
        raise OutputError(
            f"the folder {folder} holds a run already",
            next_step=f"lakeclip {verb} --resume {folder} to go on with it (--resume auto for a command that begins "
            "or goes on, whichever it is), or another --name",
        )
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"the run's folder {folder} cannot be written", found=error.strerror or str(error)) from None
    return folder


def _check_disk(folder: Path, module: ContrastiveModule, keep: int) -> None:
    """Weights and two moments, for the best checkpoint, those that are kept, and the one being written."""
    states = state_bytes(module.optimizer_config)
    needed = (2 + keep) * sum(p.numel() * (p.element_size() + states) for p in module.parameters())
    # Those of a run that goes on are there, and give way to the next.
    there = sum((folder / name).stat().st_size for name in (BEST, LAST) if (folder / name).is_file())
    free = shutil.disk_usage(folder).free + there
    if free < needed:
        raise OutputError(
            f"the disk of {folder} is too full for this run's checkpoints",
            found=f"{free / 1e9:.2f} GB free",
            allowed=f"{needed / 1e9:.2f} GB: best, last, and the next while it is written",
            next_step="make room, or give --runs a folder on another disk",
        )
