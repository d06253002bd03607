"""Request to resume a run: what a user asks for, checked in the order in which the parts of the run are made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

from lakeclip.checkpoints.folder import CONFIG
from lakeclip.checkpoints.native import Checkpoint
from lakeclip.config.load import Config, read_recipe
from lakeclip.data.datamodule import PairDataModule
from lakeclip.errors import ConfigError
from lakeclip.training.loggers import is_main
from lakeclip.training.resume.plan import ResumePlan, plan_resume
from lakeclip.training.resume.settings import changed_settings
from lakeclip.training.trainer import world_size


class RequestedResume(Generic[Config]):
    """Request to resume a run from a checkpoint.

    Args:
        folder: the run's folder.
        checkpoint: the checkpoint.
        fill_in: fills in the values that the optimiser's configuration leaves open.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, fill_in: Callable[[Any], Any]) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._fill_in = fill_in
        self._asked: dict[str, tuple[Any, Any]] = {}
        self._saved: Config | None = None

    def check(self, config: Config) -> Config:
        """Check the settings, and return them with the run's global batches on the devices of today.

        Raises:
            ConfigError: a setting cannot be changed, or the global batch cannot be divided between the devices.
        """
        saved = read_recipe(self._folder / CONFIG, type(config)) if (self._folder / CONFIG).is_file() else config
        self._saved = saved
        self._asked = self._changed(config)
        return same_global_batches(config, self._checkpoint, saved)

    def plan(self, config: Config, datamodule: PairDataModule) -> ResumePlan:
        """Return the plan of the resume; arguments and errors are those of `plan_resume`."""
        return plan_resume(
            config, self._checkpoint, datamodule, changed=self._changed(config), asked=self._asked, folder=self._folder
        )

    def _changed(self, config: Config) -> dict[str, tuple[Any, Any]]:
        filled = replace(config, optimizer=self._fill_in(config.optimizer))
        assert self._saved is not None
        return changed_settings(filled, self._checkpoint.lineage["config"], self._saved, self._folder)


def same_global_batches(config: Config, checkpoint: Checkpoint, saved: Config) -> Config:
    """Return a configuration that makes the run's earlier global batches on the devices of this machine.

    A batch size that differs from the run's own is kept.

    Args:
        checkpoint: the checkpoint that the run resumes from.
        saved: the run's own configuration, which shows what the user changed.

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
            next_step=f"--batch-size {each} for global batches of {each * now} from here on",
        )
    # A minibatch that fitted a device's memory still fits.
    at_once = min(config.trainer.minibatch_size or size, each)
    if is_main():
        devices = f"{now} device{'s' * (now > 1)}, {before} before"
        sys.stdout.write(f"{devices}: {each} pairs on each, for the same batches of {each * now}\n")
    return replace(
        config,
        data=replace(config.data, batch_size=each),
        trainer=replace(config.trainer, minibatch_size=at_once if at_once < each else None),
    )
