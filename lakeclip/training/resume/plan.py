"""Plan of a resume: its settings, data and length, checked against the run's checkpoint before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lakeclip.checkpoints.native import Checkpoint, newest_checkpoint
from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import CheckpointError, ConfigError
from lakeclip.lake.mixture import SEPARATOR
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.progress import TrainingProgress, data_state, read_progress
from lakeclip.training.resume.settings import flag, is_operational, way_out
from lakeclip.training.trainer import world_size


@dataclass(frozen=True)
class ResumePlan:
    """Plan of a resume that has passed all checks.

    Attributes:
        checkpoint: the checkpoint that the run resumes from.
        step: steps done.
        total: steps of the whole run.
        changed: settings that change, each with its old and new value.
    """

    checkpoint: Checkpoint
    step: int
    total: int
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """True if no steps are to come."""
        return self.total <= self.step

    def history(self) -> list[str]:
        """Describe the run's segments so far and the one that now begins, one line each."""
        lines = []
        for segment in self.checkpoint.lineage.get("parts", [])[1:]:
            changes = {
                name.removeprefix("config."): pair for name, pair in segment["changed"].items() if "config." in name
            }
            lines += [_segment(segment["step"], changes)] if changes else []
        return [*lines, *([_segment(self.step, self.changed)] if self.changed else [])]

    def __str__(self) -> str:
        what = f"resuming after step {self.step:,} of {self.total:,}"
        return f"{what}, with {_changes(self.changed)}" if self.changed else what


def resumable_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run that holds the complete state of its training; None if it has none yet.

    Raises:
        CheckpointError: the run has checkpoints, but none from which it can resume.
    """
    return newest_checkpoint(run, check=check_state)


def check_state(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint holds the state of the optimiser, the schedule, the loops and the data.

    Raises:
        CheckpointError: something is missing.
    """
    content, step = checkpoint.content, int(checkpoint.lineage["progress"]["step"])
    missing = [name for name in ("optimizer_states", "lr_schedulers", "loops") if not content.get(name)]
    if data_state(content) is None:
        missing.append("the position in the data")
    skipped = content.get("guard", {}).get("in_a_row", 0)
    if not missing and step > skipped and not any(states["state"] for states in content["optimizer_states"]):
        missing.append("the optimiser's running averages")
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} holds weights, but not the complete state of a training",
            found=f"step {step:,}, without {', '.join(missing)}",
            allowed="a checkpoint from which a run can resume",
            next_step=f"lakeclip finetune --from lakeclip:{checkpoint.path} to start a new run from its weights",
        )


def plan_resume(
    config: TrainConfig | FinetuneConfig,
    checkpoint: Checkpoint,
    datamodule: PairDataModule,
    *,
    changed: dict[str, tuple[Any, Any]],
    asked: Mapping[str, tuple[Any, Any]],
    folder: Path,
) -> ResumePlan:
    """Check the data and the length of a resumed run, and return its plan.

    Args:
        config: the requested configuration, whose settings `changed_settings` has accepted.
        datamodule: its data.
        changed: the settings that change.
        asked: those of them that were requested; others follow from the number of devices.
        folder: the run's folder.

    Raises:
        ConfigError: the data is not that of the run, or the run's new end is past already.
    """
    _check_data(config, checkpoint, datamodule, changed, folder)
    state = data_state(checkpoint.content)
    assert state is not None
    progress = read_progress(checkpoint.content, state, datamodule.train_stream.plan.fingerprint)
    trainer = config.trainer
    total = progress.total_steps(
        num_rows=datamodule.num_train_rows,
        samples_per_step=config.data.batch_size * world_size(trainer) * trainer.accumulate,
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
    )
    assert total is not None
    plan = ResumePlan(checkpoint, progress.step, total, changed)
    given = [path for path in asked if not is_operational(path)]
    if plan.is_complete and given:
        _refuse_end(config, plan, progress, given, folder)
    return plan


def check_fits(module: ContrastiveModule, checkpoint: Checkpoint) -> None:
    """Check that a module can take the weights and the optimiser's states of a checkpoint.

    Raises:
        CheckpointError: names or shapes differ.
    """
    stored = checkpoint.content.get("current_model_state", checkpoint.content["state_dict"])
    own = module.state_dict()
    differing = [
        f"{name} {_shape(stored.get(name))}, not {_shape(own.get(name))}"
        for name in sorted(stored.keys() | own.keys())
        if _shape(stored.get(name)) != _shape(own.get(name))
    ]
    groups = [len(group["params"]) for group in checkpoint.content["optimizer_states"][0]["param_groups"]]
    expected = [len(group["params"]) for group in module.make_optimizer().param_groups]
    if not differing and groups != expected:
        differing = [f"an optimiser of {groups} parameters, not {expected}"]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} does not fit the model that the run's configuration describes",
            found="; ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else ""),
            next_step="restore the config.yaml and the files of the models that the run started with",
        )


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else "missing"


def _check_data(
    config: TrainConfig | FinetuneConfig,
    checkpoint: Checkpoint,
    datamodule: PairDataModule,
    changed: Mapping[str, tuple[Any, Any]],
    folder: Path,
) -> None:
    """Raise if a flag names other data than the run's. Data that has grown is allowed: a new epoch begins."""
    names = [path for path in ("data.lake", "data.folder") if path in changed]
    if not names:
        return
    before, source = checkpoint.lineage["data"], datamodule.source
    fingerprint, plan = before.get("plan"), datamodule.train_stream.plan.fingerprint
    has_same_order = len(source.parts) == 1 or fingerprint in (None, plan)
    if _identity(str(before["version"])) == _identity(source.version) and has_same_order:
        return
    raise ConfigError(
        f"{' and '.join(flag(path) for path in names)} cannot name other data when {folder} is resumed",
        found=f"{source.path} ({source.version}), but {before['path']} ({before['version']}) so far",
        allowed="the same data at another path: a moved folder, or a moved or copied lake (it keeps its ID)",
        next_step=way_out(config, folder),
    )


def _identity(version: str) -> list[str]:
    """Return the IDs of lakes, or the digest of a folder's files, in a source's version."""
    parts = version.split(SEPARATOR)
    return [part if part.startswith("folder@") else part.partition("@")[0] for part in parts]


def _refuse_end(
    config: TrainConfig | FinetuneConfig, plan: ResumePlan, progress: TrainingProgress, given: list[str], folder: Path
) -> None:
    """Raise because no steps are to come, though settings change."""
    trainer, step = config.trainer, plan.step
    verb = "train" if isinstance(config, TrainConfig) else "finetune"
    begun = progress.epochs + progress.is_within_epoch
    by_steps = trainer.max_steps is not None and trainer.max_steps <= step
    limit = f"--max-steps {trainer.max_steps}" if by_steps else f"--max-epochs {trainer.max_epochs}"
    more = f"--max-steps {step + 1} or more" if by_steps else f"--max-epochs {progress.epochs + 1} or more"
    lengths = ("trainer.max_epochs", "trainer.max_steps", "data.batch_size", "trainer.accumulate")
    done = f"{step:,} steps are done" + (f", in epoch {begun}" if progress.is_within_epoch else f" ({begun} epochs)")
    if any(path in lengths for path in given):
        what = f"{folder} cannot be resumed with {limit}: no step would be left"
    else:
        what = f"{folder} is complete, so {' and '.join(flag(path) for path in given)} would change nothing"
    raise ConfigError(
        what,
        found=f"{done}; {_changes(plan.changed)}",
        allowed=more,
        next_step=f"lakeclip {verb} --resume {folder}"
        + (
            " without these flags"
            if plan.step < _recorded_total(plan.checkpoint)
            else f" {more.removesuffix(' or more')}"
        ),
    )


def _recorded_total(checkpoint: Checkpoint) -> int:
    return int(checkpoint.lineage["progress"].get("total_steps", 0))


def _segment(step: int, changes: Mapping[str, Any]) -> str:
    return f"from step {step + 1:,}: {_changes(changes)}"


def _changes(changes: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {was} → {now}" for name, (was, now) in changes.items())
