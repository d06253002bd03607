"""Reproduction of a finished run from a checkpoint's lineage: repeat the run, or replay one of its batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakeclip.checkpoints.folder import LAST
from lakeclip.checkpoints.native import Checkpoint, read_checkpoint, weights_digest
from lakeclip.config.load import config_from_dict
from lakeclip.config.schema import DataConfig, FinetuneConfig, ModelConfig, TrainConfig
from lakeclip.data.position import DataPosition
from lakeclip.data.replay import Replay
from lakeclip.errors import CheckpointError, ConfigError
from lakeclip.lake.mixture import SEPARATOR, parse_share
from lakeclip.provenance.run_segments import affects_weights, lineage_differences, list_segments, segment_at_step
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.build import build_datamodule


@dataclass(frozen=True)
class RecordedRun:
    """A run up to one of its checkpoints, with everything that repeats it.

    Attributes:
        checkpoint: the checkpoint whose weights the repetition should reach.
        config: configuration of the run, with the resolved path of its data.
    """

    checkpoint: Checkpoint
    config: TrainConfig | FinetuneConfig

    @property
    def version(self) -> str:
        """Version of the training data."""
        return str(self.checkpoint.lineage["data"]["version"])

    @property
    def step(self) -> int:
        """Step of the checkpoint."""
        return int(self.checkpoint.lineage["progress"]["step"])

    @property
    def world_size(self) -> int:
        """Number of processes in the run's last segment."""
        return int(list_segments(self.checkpoint.lineage)[-1]["world_size"])

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return int(self.checkpoint.lineage["environment"]["threads"])

    def check_start(self, digest: str | None) -> None:
        """Check that a repeated fine-tuning starts from the same weights as the original.

        Args:
            digest: sha256 of the initial weights of the repetition.

        Raises:
            CheckpointError: the weights differ.
        """
        expected = self.checkpoint.lineage.get("start")
        if expected is not None and digest != expected:
            raise CheckpointError(
                "the run cannot be repeated: the weights that it started from have changed",
                found=f"sha256 {str(digest)[:16]}…",
                allowed=f"sha256 {expected[:16]}…",
                next_step="restore the original files of --from, --image-encoder and --text-encoder",
            )


def run_checkpoint(path: str | Path) -> Path:
    """Return the last checkpoint of a run's folder, which records the whole run, or the path itself for a file."""
    return Path(path) / LAST if (Path(path) / LAST).is_file() else Path(path)


def read_recorded_run(path: str | Path) -> RecordedRun:
    """Read the run that led to a checkpoint.

    Args:
        path: a run's folder (for its last checkpoint) or a .ckpt file.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or too old, or its run cannot be repeated.
    """
    checkpoint = read_checkpoint(run_checkpoint(path))
    segments = list_segments(checkpoint.lineage)
    changes = [
        f"from step {segment['step'] + 1:,}: " + "; ".join(f"{name} {was} → {now}" for name, (was, now) in changed)
        for segment in segments
        if (changed := [(name, pair) for name, pair in segment["changed"].items() if affects_weights(name)])
    ]
    if changes:
        raise CheckpointError(
            f"the run of {checkpoint.path} cannot be repeated: it was resumed with other settings or data",
            found="\n           ".join(changes),
            allowed="a checkpoint from before the first of these steps",
            next_step=f"lakeclip inspect {checkpoint.path}, to see all segments of the run",
        )
    return RecordedRun(checkpoint, recorded_config(checkpoint.path, checkpoint.lineage))


def recorded_config(path: Path, lineage: Mapping[str, Any]) -> TrainConfig | FinetuneConfig:
    """Return the configuration in a lineage, with the resolved path of the data.

    Raises:
        CheckpointError: the run was started by a script, so that its settings are not recorded.
        ConfigError: the configuration has settings that this version of lakeclip does not have.
    """
    values = lineage["config"]
    config: TrainConfig | FinetuneConfig
    if "teacher" in values:
        config = config_from_dict(values, where=str(path), kind=FinetuneConfig)
    else:
        config = config_from_dict(values, where=str(path), kind=TrainConfig)
    data, path_of_data = config.data, str(lineage["data"]["path"])
    if data.folder is not None:
        return replace(config, data=replace(data, folder=path_of_data))
    if data.lake is None:
        raise CheckpointError(
            f"{path} was trained by a custom script, which lakeclip cannot repeat",
            allowed="a checkpoint of `lakeclip train` or `lakeclip finetune`",
        )
    names = data.lake.split(SEPARATOR)
    if len(names) == 1:
        return replace(config, data=replace(data, lake=path_of_data))
    paths = [parse_share(name)[0] for name in path_of_data.split(SEPARATOR)]
    # The shares come from the configuration, as those in the path are rounded.
    lakes = [lake_path + name.removeprefix(parse_share(name)[0]) for lake_path, name in zip(paths, names, strict=True)]
    return replace(config, data=replace(data, lake=SEPARATOR.join(lakes)))


def check_same_settings(run: RecordedRun, config: TrainConfig | FinetuneConfig) -> None:
    """Check that a configuration repeats the run.

    Raises:
        ConfigError: a setting differs that affects the weights.
    """
    data = {"data": run.checkpoint.lineage["data"]}
    differing = lineage_differences({**data, "config": asdict(run.config)}, {**data, "config": asdict(config)})
    # The path of the data may change; its version is checked.
    paths = ("config.data.lake", "config.data.folder", "config.data.val_lake")
    other = {name: pair for name, pair in differing.items() if affects_weights(name) and name not in paths}
    if other:
        raise ConfigError(
            "a run cannot be repeated with other settings",
            found="; ".join(f"{name.removeprefix('config.')} {now}, not {was}" for name, (was, now) in other.items()),
            allowed="--runs, --name, --num-workers, and --lake for a lake that was moved",
            next_step="start a new run: lakeclip train --recipe RUN/config.yaml",
        )


def replay_step(checkpoint: Checkpoint, step: int, *, token: str | None = None) -> Replay:
    """Open the data of a run to replay the batches around a step.

    Args:
        step: step from 1 to the end of the run, which may be after the checkpoint.
        token: Activeloop token for the lake.

    Raises:
        CheckpointError: the checkpoint is too old or from a custom script, or the run has no such step.
        DataError: the data is not available in its original version.
    """
    total = checkpoint.lineage["progress"].get("total_steps", 0)
    segment, lineage = segment_at_step(checkpoint.lineage, step)
    if not 1 <= step <= total:
        raise CheckpointError(
            f"the run of {checkpoint.path} has no step {step:,}", found=f"{total:,} steps", allowed=f"1 to {total:,}"
        )
    data = recorded_config(checkpoint.path, lineage).data
    # Training rows are held out only if no validation lake is named. The validation lake itself is not needed.
    training: DataConfig = replace(data, val_lake=None, val_fraction=0.0 if data.val_lake else data.val_fraction)
    size = int(lineage["image_size"])
    datamodule = build_datamodule(
        training,
        size,
        Tokenizer(),
        model=checkpoint.model_config if isinstance(checkpoint.model_config, ModelConfig) else None,
        token=token,
        version=str(lineage["data"]["version"]),
    )
    position = DataPosition(**{name: segment[name] for name in ("step", "epoch", "position", "samples_seen")})
    names = ("batch_size", "world_size", "batches_per_step", "max_steps", "max_epochs")
    return Replay(
        datamodule.train_stream,
        datamodule.image_sizes,
        position,
        **{name: segment[name] for name in names},
        total_steps=segment.get("total_steps"),
    )


@dataclass(frozen=True)
class WeightComparison:
    """Comparison of the weights of a repetition with those of the original run.

    Attributes:
        digest: sha256 of the repetition's weights.
        num_differing, num_weights: number of weights that are not bit-identical, and of all weights.
        largest: the largest difference, and the name of its tensor.
        differing: changed entries `code.…` and `environment.…`, as [then, now].
    """

    digest: str
    num_differing: int
    num_weights: int
    largest: tuple[float, str]
    differing: dict[str, list[Any]]

    @property
    def is_identical(self) -> bool:
        """True if all weights are bit-identical."""
        return self.num_differing == 0


def compare_weights(run: RecordedRun, repetition: Checkpoint) -> WeightComparison:
    """Compare the weights of a repetition with those of the original run.

    Raises:
        CheckpointError: the two have different models.
    """
    expected, actual = run.checkpoint.state_dict, repetition.state_dict
    if {name: value.shape for name, value in expected.items()} != {name: value.shape for name, value in actual.items()}:
        raise CheckpointError(f"{repetition.path} and {run.checkpoint.path} have different models")
    num_differing, largest = 0, (0.0, "")
    for name, value in expected.items():
        num_differing += int((_bytes(value) != _bytes(actual[name])).any(dim=-1).sum())
        difference = float((value.double() - actual[name].double()).abs().max()) if value.numel() else 0.0
        largest = max(largest, (difference, name))
    now = {**repetition.lineage, "config": {}, "data": {}}
    then = {**run.checkpoint.lineage, "config": {}, "data": {}}
    return WeightComparison(
        weights_digest(actual),
        num_differing,
        sum(value.numel() for value in expected.values()),
        largest,
        lineage_differences(then, now),
    )


def _bytes(value: Tensor) -> Tensor:
    """Return the bytes of a tensor, (elements, bytes per element)."""
    return value.contiguous().reshape(-1, 1).view(torch.uint8)
