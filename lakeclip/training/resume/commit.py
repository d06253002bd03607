"""Callback that writes the files of a resumed run once everything has been restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lakeclip.checkpoints.folder import CONFIG
from lakeclip.config.load import write_config
from lakeclip.config.schema import FinetuneConfig, TrainConfig


class CommitResume(Callback):
    """Callback that writes config.yaml and starts the loggers of a resumed run before its first step.

    Until then nothing in the run's folder has changed, so that a resume which fails leaves it as it was.

    Args:
        config: the configuration of the run from here on.
        folder: the run's folder.
        history: lines about its segments, for config.yaml.
        make_loggers: starts the loggers.

    Attributes:
        loggers: the loggers, once they are started.
    """

    def __init__(
        self,
        config: TrainConfig | FinetuneConfig,
        folder: Path,
        history: Sequence[str],
        make_loggers: Callable[[], list[Logger]],
    ) -> None:
        self._config, self._folder, self._history = config, folder, history
        self._make_loggers = make_loggers
        self.loggers: list[Logger] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.loggers = self._make_loggers()
        trainer.loggers = self.loggers
        if trainer.is_global_zero:
            write_config(self._config, self._folder / CONFIG, history=self._history)
