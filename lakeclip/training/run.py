"""Whole runs: from a configuration to a folder with checkpoints, curves and the configuration itself."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lakeclip.checkpoints.folder import BEST, CONFIG, LAST
from lakeclip.checkpoints.native import Checkpoint
from lakeclip.config.load import config_to_dict, write_config
from lakeclip.config.schema import DataConfig, FinetuneConfig, ModelConfig, TrainConfig, TrainerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.quarantine import QUARANTINE, read_quarantine
from lakeclip.errors import ConfigError, LakeclipError, OutputError, print_warnings
from lakeclip.ingestion.mark_unusable import mark_unusable
from lakeclip.lake.engine import TOKEN_VARIABLE
from lakeclip.lake.pairs import describe
from lakeclip.losses.registry import find_loss
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.build import build_datamodule, build_finetune_module, build_module, load_start
from lakeclip.training.callbacks.evaluation import EvaluationCallback, EvaluationClock
from lakeclip.training.callbacks.rank_watchdog import RankWatchdog
from lakeclip.training.callbacks.stopping import GracefulStop, StopAtStep, Stopped
from lakeclip.training.callbacks.throughput import Speed, Throughput
from lakeclip.training.callbacks.wise_ft import build_wise_ft
from lakeclip.training.checks import check_train
from lakeclip.training.data_checks import check_data
from lakeclip.training.errors import explain_error, silence_full_disk_in_threads
from lakeclip.training.freeze import with_finetune_defaults
from lakeclip.training.loggers import check_trackers, finish_loggers, is_main, make_loggers
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.optim.optimizers import state_bytes, with_paper_values
from lakeclip.training.precision import precision_warnings, resolve_precision
from lakeclip.training.reproduce import RecordedRun
from lakeclip.training.resume.commit import CommitResume
from lakeclip.training.resume.lock import lock_run
from lakeclip.training.resume.plan import ResumePlan, check_fits, resumable_checkpoint
from lakeclip.training.resume.request import RequestedResume
from lakeclip.training.trainer import make_trainer, quiet_lightning, world_size


@dataclass(frozen=True)
class TrainResult:
    """Result of `train` and `finetune`.

    Attributes:
        folder: the run's folder: config.yaml, metrics.csv, tensorboard/, checkpoints/{best,last}.ckpt.
        steps: optimiser steps in all, including those before a resume.
        seconds: wall-clock time of this segment of the run.
        interrupted: a signal stopped the run; `resume` continues it.
        is_main: this process is the first of the run, the one that reports.
        speed: mean speed without the first step; None if there was no step.
        evaluation: share of `seconds` spent on validation and scores.
        scores: the last scores on --eval-lake.
        signal: number of the signal, if this process received it.
        is_complete: the run that was resumed had ended already, so nothing was done.
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
    is_complete: bool = False


def train(
    config: TrainConfig,
    *,
    resume: str | Path | None = None,
    token: str | None = None,
    past: RecordedRun | None = None,
) -> TrainResult:
    """Train CLIP from scratch, or resume a run.

    All input is checked before the first step.

    Args:
        resume: folder of a run to resume from its newest whole checkpoint, with weights, optimiser state and position.
            Settings that differ from the run's are applied from the next step on, or refused (docs/guides/resume.md). A
            run that was stopped before its first checkpoint starts again.
        token: for lakes that need one; by default the environment's ACTIVELOOP_TOKEN. It is not saved.
        past: a run to repeat: its model and its version of the data, up to its step.

    Raises:
        LakeclipError: of the kind that says what is wrong: configuration, model, data, device, checkpoint or output.
    """
    config = resolve_precision(config)
    known = past.checkpoint.model_config if past else None
    sizes = check_train(config, known if isinstance(known, ModelConfig) else None)
    with lock_run(Path(resume)) if resume else nullcontext():
        resumed: RequestedResume[TrainConfig] | None = None
        if resume and (checkpoint := _checkpoint_to_resume(resume)):
            checkpoint.require_model(sizes)
            if set(checkpoint.scalars) != set(find_loss(config.loss.objective).scalars):
                raise ConfigError(
                    f"{resume} cannot be resumed with another objective",
                    found=f"objective {config.loss.objective}",
                    allowed=f"the objective that the run started with, which learns {', '.join(checkpoint.scalars)}",
                )
            is_resnet = sizes.vision_patch_size is None
            resumed = RequestedResume(
                Path(resume), checkpoint, lambda unset: with_paper_values(unset, config.model, is_resnet=is_resnet)
            )
            config = resumed.check(config)
        datamodule = build_datamodule(
            config.data,
            sizes.image_resolution,
            Tokenizer(sizes.context_length),
            model=sizes,
            batches_per_step=config.trainer.accumulate,
            token=token or os.environ.get(TOKEN_VARIABLE),
            version=past.version if past else None,
        )
        datamodule.setup("fit")
        _warn(config, datamodule)
        folder = _run_folder(config.trainer, config.model, resume, verb="train")
        return _run(lambda: build_module(config, sizes, folder), datamodule, config, folder, resumed, past=past)


def finetune(
    config: FinetuneConfig,
    *,
    resume: str | Path | None = None,
    token: str | None = None,
    past: RecordedRun | None = None,
) -> TrainResult:
    """Fine-tune two pretrained towers, or a whole CLIP, or resume such a run.

    Args:
        resume, token: as for `train`.
        past: a run to repeat: its version of the data, up to its step.

    Raises:
        LakeclipError: as for `train`; also if a tower is unavailable.
    """
    config = resolve_precision(config)
    with lock_run(Path(resume)) if resume else nullcontext():
        resumed: RequestedResume[FinetuneConfig] | None = None
        if resume and (checkpoint := _checkpoint_to_resume(resume)):
            is_clip = isinstance(checkpoint.model_config, ModelConfig)
            resumed = RequestedResume(
                Path(resume), checkpoint, lambda unset: with_finetune_defaults(unset, is_clip=is_clip)
            )
            config = resumed.check(config)
        start = load_start(config)
        datamodule = build_datamodule(
            config.data,
            start.image_size,
            start.tokenize,
            model=start.model_config,
            batches_per_step=config.trainer.accumulate,
            token=token or os.environ.get(TOKEN_VARIABLE),
            version=past.version if past else None,
        )
        datamodule.setup("fit")
        _warn(config, datamodule)
        folder = _run_folder(config.trainer, f"finetuned-{_folder_name(start.name)}", resume, verb="finetune")

        def build() -> ContrastiveModule:
            module = build_finetune_module(config, start, folder)
            if past:
                past.check_start(module.start)
            return module

        return _run(build, datamodule, config, folder, resumed, past=past)


def _run(
    build: Callable[[], ContrastiveModule],
    datamodule: PairDataModule,
    config: TrainConfig | FinetuneConfig,
    folder: Path,
    resumed: RequestedResume[Any] | None,
    *,
    past: RecordedRun | None,
) -> TrainResult:
    """Check what is left to check, make the run's folder, and fit."""
    plan = resumed.plan(config, datamodule) if resumed else None
    if plan is not None and plan.is_complete:
        return TrainResult(folder, plan.step, 0.0, interrupted=False, is_main=is_main(), is_complete=True)
    keeping = None
    if isinstance(config, FinetuneConfig) and config.keep.keep_lake:
        keeping = build_wise_ft(config.keep, datamodule)
    check_trackers(config.trainer.track)
    evaluations = [EvaluationCallback(config.evaluation)] if config.evaluation.eval_lake else []
    prompts = [warning for test in evaluations for warning in test.evaluator.check_prompts(datamodule.tokenize)]
    if is_main():
        print_warnings(prompts, to_output=True)
        print_warnings([warning for test in evaluations for warning in test.evaluator.warnings], to_output=True)
        print_warnings(keeping.warnings if keeping else (), to_output=True)
    module = build()
    if plan is not None:
        check_fits(module, plan.checkpoint)
    _make_folder(folder)
    with lock_run(folder):
        return _locked_run(
            module, datamodule, config, folder, plan, keeping=keeping, evaluations=evaluations, past=past
        )


def _locked_run(
    module: ContrastiveModule,
    datamodule: PairDataModule,
    config: TrainConfig | FinetuneConfig,
    folder: Path,
    plan: ResumePlan | None,
    *,
    keeping: Callback | None,
    evaluations: Sequence[Callback],
    past: RecordedRun | None,
) -> TrainResult:
    """Fit in a folder that no other process uses."""
    if is_main():
        _check_disk(folder, module, config.trainer.keep_last)
    datamodule.set_quarantine_file(folder / QUARANTINE)
    if is_main():
        sys.stdout.write(describe(datamodule.source))
        sys.stdout.write(f"{plan}\n" if plan is not None else "")
        sys.stdout.flush()
        if plan is None:
            write_config(config, folder / CONFIG)
    callbacks: list[Callback] = [keeping] if keeping else []
    if past:
        callbacks.append(StopAtStep(past.step, folder / LAST, world_size=past.world_size))
    result = _fit(module, datamodule, config, folder, plan, callbacks=callbacks, evaluations=evaluations)
    _report_unusable(result, config.data)
    return result


def _warn(config: TrainConfig | FinetuneConfig, datamodule: PairDataModule) -> None:
    """Check the data and the precision of a run, and print warnings.

    Raises:
        LakeclipError: nothing can be learned from batches like these.
    """
    warnings = check_data(config, datamodule, world_size=world_size(config.trainer))
    if is_main():
        # To standard output, as the plan of a dry run has them: the run goes on.
        print_warnings([*precision_warnings(config), *warnings], to_output=True)


def _checkpoint_to_resume(resume: str | Path | None) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run to resume."""
    if resume is None:
        return None
    checkpoint = resumable_checkpoint(Path(resume))
    if checkpoint is None and is_main():
        sys.stdout.write(f"{resume} has no checkpoint yet: starting again\n")
    return checkpoint


def _folder_name(name: str) -> str:
    """Convert a model name into a safe folder name."""
    return "-".join(re.findall(r"[A-Za-z0-9_.]+", name))[-60:]


def _report_unusable(result: TrainResult, data: DataConfig) -> None:
    """Print how many rows could not be used, and mark them in their lakes if the configuration says so."""
    unusable = read_quarantine(result.folder / QUARANTINE)
    if not unusable or not result.is_main:
        return
    for path, reasons in unusable.items():
        sys.stdout.write(f"{len(reasons):,} rows of {path} could not be used: {result.folder / QUARANTINE}\n")
        if data.mark_unusable and data.folder is None:
            sys.stdout.write(f"  marked in the lake: {mark_unusable(path, reasons):,}\n")


def _fit(
    module: ContrastiveModule,
    datamodule: PairDataModule,
    config: TrainConfig | FinetuneConfig,
    folder: Path,
    plan: ResumePlan | None,
    *,
    callbacks: Sequence[Callback] = (),
    evaluations: Sequence[Callback] = (),
) -> TrainResult:
    """Fit the module, and return the result once everything is closed.

    Args:
        callbacks, evaluations: as for `make_trainer`.
    """
    torch.set_float32_matmul_precision("high")
    interrupted = False
    verb = "train" if isinstance(config, TrainConfig) else "finetune"
    watchdog = RankWatchdog(lambda error: explain_error(error, folder, verb=verb))
    started = time.perf_counter()
    with quiet_lightning(), silence_full_disk_in_threads():
        start_loggers = partial(
            make_loggers, config.trainer.track, folder, config_to_dict(config), reached=plan.step if plan else 0
        )
        # The files of a resumed run stay as they are until it is restored.
        commit = CommitResume(config, folder, plan.history(), start_loggers) if plan else None
        loggers = [] if commit else start_loggers()
        # Short runs log every step. Reading the loss from a GPU at every step of a long run would cost time.
        trainer = make_trainer(
            config.trainer,
            folder,
            loggers=loggers,
            has_validation=datamodule.has_validation,
            log_every=1 if datamodule.steps_per_epoch < 200 else 10,
            ema_decay=module.optimizer_config.ema_decay,
            callbacks=[watchdog, *([commit] if commit else []), *callbacks],
            evaluations=evaluations,
        )
        try:
            path = plan.checkpoint.path if plan else None
            trainer.fit(module, datamodule=datamodule, ckpt_path=path, weights_only=True)
        except Stopped:
            interrupted = True
        except (OSError, RuntimeError, LakeclipError) as error:
            raise explain_error(error, folder, verb=verb, ranks=watchdog) from error
        finally:
            watchdog.stop()
            finish_loggers(commit.loggers if commit else loggers)
    seconds = time.perf_counter() - started
    used: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    (throughput,) = [callback for callback in used if isinstance(callback, Throughput)]
    (clock,) = [callback for callback in used if isinstance(callback, EvaluationClock)]
    (stop,) = [callback for callback in used if isinstance(callback, GracefulStop)]
    return TrainResult(
        folder,
        trainer.global_step,
        seconds,
        interrupted,
        trainer.is_global_zero,
        throughput.average(),
        evaluation=clock.seconds / seconds,
        scores=next((callback.latest for callback in used if isinstance(callback, EvaluationCallback)), {}),
        signal=stop.received,
    )


def _run_folder(config: TrainerConfig, model: str, resume: str | Path | None, *, verb: str) -> Path:
    """Return the run's folder.

    Raises:
        OutputError: it holds another run.
    """
    if resume is not None:
        return Path(resume)
    folder = Path(config.runs) / (config.name or f"{model.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}")
    if is_main() and (folder / LAST).exists():
        raise OutputError(
            f"the folder {folder} holds a run already",
            next_step=f"lakeclip {verb} --resume {folder} to continue it (--resume auto for a command that starts or "
            "continues, as needed), or another --name",
        )
    return folder


def _make_folder(folder: Path) -> None:
    """Make the run's folder, in the main process only.

    Raises:
        OutputError: it cannot be written.
    """
    if not is_main():
        return
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"the run's folder {folder} cannot be written", found=error.strerror or str(error)) from None


def _check_disk(folder: Path, module: ContrastiveModule, keep: int) -> None:
    """Raise if the disk cannot hold the best checkpoint, those that are kept, and the one being written."""
    states = state_bytes(module.optimizer_config)
    needed = (2 + keep) * sum(p.numel() * (p.element_size() + states) for p in module.parameters())
    # A resumed run replaces the checkpoints that it has.
    existing = sum((folder / name).stat().st_size for name in (BEST, LAST) if (folder / name).is_file())
    free = shutil.disk_usage(folder).free + existing
    if free < needed:
        raise OutputError(
            f"the disk of {folder} is too full for this run's checkpoints",
            found=f"{free / 1e9:.2f} GB free",
            allowed=f"{needed / 1e9:.2f} GB: best, last, and the next while it is written",
            next_step="make room, or give --runs a folder on another disk",
        )
