"""Callback that evaluates a model while it trains, on images of another lake; its schedule and its clock."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from lakeclip.config.schema import EvaluationConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ConfigError, LakeclipError
from lakeclip.evaluation.encode import without_progress_bars
from lakeclip.evaluation.evaluator import Evaluator
from lakeclip.models.clip import CLIP
from lakeclip.text.custom import as_tokenize
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.batches import default_tokenizer
from lakeclip.training.callbacks.ema import averaged_weights
from lakeclip.training.callbacks.throughput import Throughput
from lakeclip.training.module import ContrastiveModule
from lakeclip.types import Tokenize

#: Share of the run's time that evaluation takes, unless a number of steps is given.
TIME_SHARE = 0.02
#: A training step computes three times as much as encoding the same images and texts.
_STEP_COST = 3


class EvaluationClock(Callback):
    """Callback that measures the time that a run spends on validation and evaluation.

    Attributes:
        seconds: total so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds += time.perf_counter() - self._started

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Add the time of the block to the total."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


class EvaluationCallback(Callback):
    """Callback that evaluates a model while it trains, and logs `eval/zeroshot_top1` and other scores to all loggers.

    The scores are in `trainer.callback_metrics` too. If a callback such as `ModelCheckpoint` or `EarlyStopping`
    monitors one of them, the model is also scored before each validation and at the end of each epoch.

    If the run averages its weights, the average is scored. Training is not affected: the callback draws no random
    numbers, and the weights of a run are the same with and without it. If the data becomes unreadable during the run,
    the scores are skipped with a message and the run continues.

    Args:
        config: which scores, on which rows, and how often.
        tokenize: captions and prompts to ids. Default: that of the data module or of the module, or CLIP's tokenizer.
        image_size: side in pixels, for towers other than CLIP's and a run without a `PairDataModule`. Default: the
            model's.

    Attributes:
        latest: the most recent scores by name, without the prefix `eval/`.

    Raises:
        ConfigError: an evaluation is not registered, or it needs labels and there is no label column.
        LakeclipError: the lake, its labels or the prompts are unavailable, or the rows do not suffice for a score.
    """

    def __init__(
        self, config: EvaluationConfig, *, tokenize: Tokenize | None = None, image_size: int | None = None
    ) -> None:
        self.evaluator = Evaluator(config)
        self._every = config.eval_every_steps
        self.latest: dict[str, float] = {}
        self._tokenize = as_tokenize(tokenize)
        self._image_size = image_size
        self._next_step = 0
        self._final_step: int | None = None
        self._ended = 0.0
        self._scored_step = 0

    # ── the schedule ──────────────────────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the next evaluation, so that a resumed run keeps the schedule."""
        return {"next": self._next_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._next_step = state_dict["next"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        self._ended, self._scored_step = time.perf_counter(), trainer.global_step
        self._final_step = pl_module.known_total_steps
        self._preprocessing(trainer, pl_module)
        if self._every is not None:
            self._next_step = (trainer.global_step // self._every + 1) * self._every
        elif self._next_step <= trainer.global_step:
            datamodule = getattr(trainer, "datamodule", None)
            pairs = datamodule.batch_size if isinstance(datamodule, PairDataModule) else 1
            pairs *= trainer.world_size * pl_module.accumulate
            self._next_step = next_step(trainer.global_step, len(self.evaluator) / _STEP_COST / pairs, 1.0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        step = trainer.global_step
        # The global step does not advance while gradients are accumulated.
        if step == self._scored_step or (step < self._next_step and step != self._final_step):
            return
        before, started = self._ended, time.perf_counter()
        with _clock(trainer).measure():
            self._score(trainer, pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.pause()
        self._ended = time.perf_counter()
        if self._every is not None:
            self._next_step = step + self._every
        else:
            seconds_per_step = (started - before) / (step - self._scored_step)
            # The clocks of the processes differ; all of them follow the first.
            self._next_step = trainer.strategy.broadcast(next_step(step, self._ended - started, seconds_per_step))
        self._scored_step = step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._score_if_monitored(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._score_if_monitored(trainer, pl_module)

    def _score_if_monitored(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Score the weights of now for a callback that will compare the score with earlier ones."""
        assert isinstance(module, ContrastiveModule)
        step = trainer.global_step
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or step == self._scored_step:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(str(getattr(callback, "monitor", None)).startswith("eval/") for callback in callbacks):
            self._score(trainer, module)
            self._scored_step = step

    # ── the scores ────────────────────────────────────────────────────────────────────────────────────────────────

    def _score(self, trainer: L.Trainer, module: ContrastiveModule) -> None:
        try:
            with averaged_weights(trainer, module), trainer.precision_plugin.forward_context(), without_progress_bars():
                self.latest = self.evaluator.score(module.model, *self._preprocessing(trainer, module))
        except LakeclipError as error:
            if trainer.is_global_zero:
                sys.stderr.write(f"no scores at step {trainer.global_step}: {error}\n")
            return
        metrics = {f"eval/{name}": value for name, value in self.latest.items()}
        # Into `trainer.callback_metrics` only: Lightning logs at its own steps, and the loggers get the scores now.
        module.log_dict(metrics, logger=False, batch_size=1)
        for logger in trainer.loggers:
            # Lightning counts the steps that it logs from 0.
            logger.log_metrics(metrics, step=trainer.global_step - 1)
            logger.save()

    def _preprocessing(self, trainer: L.Trainer, module: ContrastiveModule) -> tuple[Tokenize, EvalTransform]:
        """Return the run's tokenizer and image transform."""
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, PairDataModule):
            return self._tokenize or datamodule.tokenize, datamodule.eval_transform
        tokenize, model = self._tokenize or module.tokenizer, module.model
        if isinstance(model, CLIP):
            return tokenize or Tokenizer(model.config.context_length), EvalTransform.of(model.config)
        tokenize = tokenize or default_tokenizer(model)
        if tokenize is None:
            raise ConfigError(
                "the tokenizer of the text encoder is unknown, and evaluation needs it",
                found="a dataloader of your own, and no tokenizer",
                allowed="a Hugging Face tokenizer, or a function from captions to token ids",
                next_step="give the module tokenizer=YOUR_TOKENIZER, or the callback tokenize=",
            )
        return tokenize, EvalTransform(self._image_size or model.image_size)


def next_step(step: int, seconds: float, seconds_per_step: float, share: float = TIME_SHARE) -> int:
    """Return the step of the next evaluation, such that evaluation takes a given share of the training time.

    Args:
        step: the current step.
        seconds: duration of an evaluation.
        seconds_per_step: duration of a training step, in the same unit.
        share: share of the time, above 0.
    """
    return step + max(1, math.ceil(seconds / (share * max(seconds_per_step, 1e-9))))


def _clock(trainer: L.Trainer) -> EvaluationClock:
    clocks = [callback for callback in trainer.callbacks if isinstance(callback, EvaluationClock)]  # type: ignore[attr-defined]
    return clocks[0] if clocks else EvaluationClock()
