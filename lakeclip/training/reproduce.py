"""A run that is over, from the lineage of one of its checkpoints: to be run again, or its batches looked at again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakeclip.checkpoints.folder import LAST
from lakeclip.checkpoints.native import Checkpoint, read_checkpoint, weights_digest
from lakeclip.checkpoints.parts import changes_weights, differences, part_of, parts_of_run
from lakeclip.config.load import config_from_dict
from lakeclip.config.schema import DataConfig, FinetuneConfig, TrainConfig
from lakeclip.data.progress import Mark
from lakeclip.data.replay import Replay
from lakeclip.errors import CheckpointError, ConfigError
from lakeclip.lake.several import SEPARATOR, parse_share
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.parts import make_datamodule


@dataclass(frozen=True)
class Past:
    """A run up to one of its checkpoints, as it can be run again.

    Attributes:
        checkpoint: what is to be reached again.
        config: of the run, with the data's path as it was found.
    """

    checkpoint: Checkpoint
    config: TrainConfig | FinetuneConfig

    @property
    def version(self) -> str:
        """Of what it was trained on."""
        return str(self.checkpoint.lineage["data"]["version"])

    @property
    def step(self) -> int:
        """How far the checkpoint is."""
        return int(self.checkpoint.lineage["progress"]["step"])

    @property
    def world_size(self) -> int:
        """Processes that trained together."""
        return int(parts_of_run(self.checkpoint.lineage)[-1]["world_size"])

    @property
    def threads(self) -> int:
        """Of each process, on the CPU."""
        return int(self.checkpoint.lineage["environment"]["threads"])

    def check_start(self, digest: str | None) -> None:
        """Make sure that a fine-tuning begins with the weights it began with.

        Raises:
            CheckpointError: it does not.
        """
        expected = self.checkpoint.lineage.get("start")
        if expected is not None and digest != expected:
            raise CheckpointError(
                "the run cannot be repeated: the weights that it started from are others now",
                found=f"sha256 {str(digest)[:16]}…",
                allowed=f"sha256 {expected[:16]}…",
                next_step="the files that --from, --image-encoder and --text-encoder named, as they were",
            )


def run_checkpoint(path: str | Path) -> Path:
    """What stands for a run here: of its folder the last checkpoint, which knows all of it; or the file itself."""
    return Path(path) / LAST if (Path(path) / LAST).is_file() else Path(path)


def read_past(path: str | Path) -> Past:
    """The run that led to a checkpoint.

    Args:
        path: a run's folder (its last checkpoint) or a .ckpt file.

    Raises:
        CheckpointError: missing, damaged, too old, or of a run that cannot be repeated; with the reason.
    """
    checkpoint = read_checkpoint(run_checkpoint(path))
    parts = parts_of_run(checkpoint.lineage)
    named = [
        f"from step {part['step'] + 1:,}: " + "; ".join(f"{name} {was} → {now}" for name, (was, now) in changed)
        for part in parts
        if (changed := [(name, pair) for name, pair in part["changed"].items() if changes_weights(name)])
    ]
    if named:
        raise CheckpointError(
            f"the run of {checkpoint.path} cannot be repeated as one: it went on with other settings or data",
            found="\n           ".join(named),
            allowed="a checkpoint from before the first of these steps",
            next_step=f"lakeclip inspect {checkpoint.path} shows all parts",
        )
    return Past(checkpoint, config_then(checkpoint.path, checkpoint.lineage))


def config_then(path: Path, lineage: Mapping[str, Any]) -> TrainConfig | FinetuneConfig:
    """The configuration in a lineage, with the data where it was found.

    Raises:
        CheckpointError: the run was a script's, whose settings nobody knows.
        ConfigError: it has settings that this lakeclip does not know.
    """
    values = lineage["config"]
    config: TrainConfig | FinetuneConfig
    if "teacher" in values:
        config = config_from_dict(values, where=str(path), kind=FinetuneConfig)
    else:
        config = config_from_dict(values, where=str(path), kind=TrainConfig)
    data, found = config.data, str(lineage["data"]["path"])
    if data.folder is not None:
        return replace(config, data=replace(data, folder=found))
    if data.lake is None:
        raise CheckpointError(
            f"{path} was trained by a script of its own, which lakeclip cannot run again",
            allowed="a checkpoint of `lakeclip train` or `lakeclip finetune`",
        )
    names = data.lake.split(SEPARATOR)
    if len(names) == 1:
        return replace(config, data=replace(data, lake=found))
    paths = [parse_share(name)[0] for name in found.split(SEPARATOR)]
    # The shares as they were written: those in the path are rounded.
    lakes = [where + name.removeprefix(parse_share(name)[0]) for where, name in zip(paths, names, strict=True)]
    return replace(config, data=replace(data, lake=SEPARATOR.join(lakes)))


def check_unchanged(past: Past, config: TrainConfig | FinetuneConfig) -> None:
    """Make sure that what is asked for besides is no other run.

    Raises:
        ConfigError: a setting that would lead to other weights.
    """
    lineage = past.checkpoint.lineage
    empty = {"data": lineage["data"]}
    found = differences({**empty, "config": asdict(past.config)}, {**empty, "config": asdict(config)})
    # Moved data is the same data: its version says so.
    moved = ("config.data.lake", "config.data.folder", "config.data.val_lake")
    other = {name: pair for name, pair in found.items() if changes_weights(name) and name not in moved}
    if other:
        raise ConfigError(
            "a run is to be repeated with other settings",
            found="; ".join(f"{name.removeprefix('config.')} {now}, not {was}" for name, (was, now) in other.items()),
            allowed="--runs, --name, --num-workers, --lake for a lake that was moved",
            next_step="a run of its own: lakeclip train --recipe RUN/config.yaml",
        )


def replay_of(checkpoint: Checkpoint, step: int, *, token: str | None = None) -> Replay:
    """How a run went through its data at a step, with the data as it was then.

    Args:
        step: counted from 1, up to the end of the run, wherever the checkpoint stands.

    Raises:
        CheckpointError: too old, a script's, or the run has no such step.
        DataError: the data cannot be had as it was.
    """
    total = checkpoint.lineage["progress"].get("total_steps", 0)
    part, then = part_of(checkpoint.lineage, step)
    if not 1 <= step <= total:
        raise CheckpointError(
            f"the run of {checkpoint.path} has no step {step:,}", found=f"{total:,} steps", allowed=f"1 to {total:,}"
        )
    data = config_then(checkpoint.path, then).data
    # Rows are held out where no data is named for that, so the name counts, but not what is there now.
    training: DataConfig = replace(data, val_lake=None, val_fraction=0.0 if data.val_lake else data.val_fraction)
    size = int(then["image_size"])
    made = make_datamodule(training, size, Tokenizer(), token=token, version=str(then["data"]["version"]))
    mark = Mark(**{name: part[name] for name in ("step", "epoch", "position", "samples_seen")})
    pace = {name: part[name] for name in ("batch_size", "world_size", "batches_per_step", "max_steps", "max_epochs")}
    return Replay(made.train_stream, made.sizes, mark, **pace)


@dataclass(frozen=True)
class Verdict:
    """How the weights that a repetition reached compare with those that were to be reached.

    Attributes:
        digest: sha256 of the weights that were reached.
        num_differing, num_weights: numbers in them that are not the same bit for bit, and all of them.
        largest: the largest difference, and where it is.
        differing: what is another now than then: `code.…` and `environment.…`, as [then, now].
    """

    digest: str
    num_differing: int
    num_weights: int
    largest: tuple[float, str]
    differing: dict[str, list[Any]]

    @property
    def is_identical(self) -> bool:
        """Whether they are the same, bit for bit."""
        return self.num_differing == 0


def compare(past: Past, reached: Checkpoint) -> Verdict:
    """Compare the weights of a repetition with those of the checkpoint.

    Raises:
        CheckpointError: the two are not of one model.
    """
    expected, found = past.checkpoint.state_dict, reached.state_dict
    if {name: value.shape for name, value in expected.items()} != {name: value.shape for name, value in found.items()}:
        raise CheckpointError(f"{reached.path} and {past.checkpoint.path} are not of one model")
    differing, largest = 0, (0.0, "")
    for name, value in expected.items():
        differing += int((_bits(value) != _bits(found[name])).any(dim=-1).sum())
        gap = float((value.double() - found[name].double()).abs().max()) if value.numel() else 0.0
        largest = max(largest, (gap, name))
    now = {**reached.lineage, "config": {}, "data": {}}
    then = {**past.checkpoint.lineage, "config": {}, "data": {}}
    return Verdict(
        weights_digest(found),
        differing,
        sum(value.numel() for value in expected.values()),
        largest,
        differences(then, now),
    )


def _bits(value: Tensor) -> Tensor:
    """(numbers, bytes)."""
    return value.contiguous().reshape(-1, 1).view(torch.uint8)
