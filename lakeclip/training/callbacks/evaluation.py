"""Scores that are taken while a model trains, on images of another lake: a callback, its schedule, and its clock."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lakeclip.config.schema import EvaluationConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import LakeclipError
from lakeclip.evaluation.encode import without_bars
from lakeclip.models.clip import CLIP
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.ema import averaged
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.watching.examination import Examination
from lakeclip.training.watching.throughput import Throughput
from lakeclip.types import Tokenize

#: Share of the run's time that scoring takes where no number of steps is given.
SHARE = 0.02
#: A training step computes three times what encoding the same images and texts does.
_STEP_PER_FORWARD = 3


class EvaluationClock(Callback):
    """Measures how long a run validates and scores.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds += time.perf_counter() - self._started

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


class EvaluationCallback(Callback):
    """Scores a model while it trains: `eval/zeroshot_top1` and the others, in every log that the run has.

    With an average of the weights, the average is scored. Training is not touched: no random number is drawn, and the
    weights of a run are the same with it and without. What cannot be read on the way is said and left out; the run
    goes on.

    Args:
        config: which scores, on what, and how often.
        tokenize: captions and prompts to ids. Default: the data module's, or CLIP's tokenizer.
        image_size: side in pixels. Default: the data module's, or the model's where it says so.

    Raises:
        LakeclipError: the lake, its labels or the prompts cannot be had.
    """

    def __init__(self, config: EvaluationConfig, *, tokenize: Tokenize | None = None, image_size: int = 224) -> None:
        self.examination = Examination(config)
        self._every = config.eval_every_steps
        self.latest: dict[str, float] = {}
        self._tokenize = tokenize
        self._image_size = image_size
        self._next = self._last = 0
        self._ended = 0.0
        self._scored_at = 0

    # ── the schedule ──────────────────────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """When the next scores are due: a run that goes on keeps to it."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The opposite of `state_dict`."""
        self._next = state_dict["next"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        self._ended, self._scored_at = time.perf_counter(), trainer.global_step
        self._last = pl_module.total_steps
        if self._every is not None:
            self._next = (trainer.global_step // self._every + 1) * self._every
        elif self._next <= trainer.global_step:
            datamodule = getattr(trainer, "datamodule", None)
            pairs = datamodule.batch_size if isinstance(datamodule, PairDataModule) else 1
            pairs *= trainer.world_size * pl_module.accumulate
            self._next = next_step(trainer.global_step, len(self.examination) / _STEP_PER_FORWARD / pairs, 1.0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        step = trainer.global_step
        # A batch whose gradients are only added up is no step.
        if step == self._scored_at or (step < self._next and step != self._last):
            return
        before, started = self._ended, time.perf_counter()
        with _clock(trainer).running():
            self._score(trainer, pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.pause()
        self._ended = time.perf_counter()
        if self._every is not None:
            self._next = step + self._every
        else:
            a_step = (started - before) / (step - self._scored_at)
            # The processes' clocks differ: that of the first counts.
            self._next = trainer.strategy.broadcast(next_step(step, self._ended - started, a_step))
        self._scored_at = step

    # ── the scores ────────────────────────────────────────────────────────────────────────────────────────────────

    def _score(self, trainer: L.Trainer, module: ContrastiveModule) -> None:
        try:
            with averaged(trainer, module), trainer.precision_plugin.forward_context(), without_bars():
                self.latest = self.examination.take(module.model, *self._reader(trainer, module))
        except LakeclipError as error:
            if trainer.is_global_zero:
                sys.stderr.write(f"no scores at step {trainer.global_step}: {error}\n")
            return
        figures = {f"eval/{name}": value for name, value in self.latest.items()}
        for logger in trainer.loggers:
            # As Lightning counts what it logs itself: from 0.
            logger.log_metrics(figures, step=trainer.global_step - 1)
            logger.save()

    def _reader(self, trainer: L.Trainer, module: ContrastiveModule) -> tuple[Tokenize, EvalTransform]:
        """The run's way from captions and images to what the model takes."""
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, PairDataModule):
            return self._tokenize or datamodule.tokenize, EvalTransform(datamodule.image_size)
        if isinstance(module.model, CLIP):
            sizes = module.model.config
            return self._tokenize or Tokenizer(sizes.context_length), EvalTransform(sizes.image_resolution)
        return self._tokenize or Tokenizer(), EvalTransform(self._image_size)


def next_step(step: int, seconds: float, seconds_per_step: float, share: float = SHARE) -> int:
    """The step after which the next scores are due, for scoring to take a share of the time.

    Args:
        step: the present one.
        seconds: that scoring takes.
        seconds_per_step: of training, in the same unit.
    """
    return step + max(1, math.ceil(seconds / (share * max(seconds_per_step, 1e-9))))


def _clock(trainer: L.Trainer) -> EvaluationClock:
    clocks = [one for one in trainer.callbacks if isinstance(one, EvaluationClock)]  # type: ignore[attr-defined]
    return clocks[0] if clocks else EvaluationClock()
