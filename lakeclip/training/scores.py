"""Scores that are taken while a model trains, on images of another lake: a callback, its schedule, and its clock."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lakeclip.config.schema import EvaluationConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.order import draw_sample
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ConfigError, DataError, LakeclipError
from lakeclip.evaluation.classifier import classifier_weights, classify
from lakeclip.evaluation.encode import encode_images, encode_texts, without_bars
from lakeclip.evaluation.labels import Labels, parse_classes, read_labels
from lakeclip.evaluation.probe import linear_probe
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.retrieval import retrieval_metrics
from lakeclip.evaluation.robustness import robustness
from lakeclip.evaluation.zeroshot import count_answers
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.several import Lakes
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.ema import averaged
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.throughput import Throughput
from lakeclip.types import Tokenize

Part = TypeVar("Part")

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
        if config.eval_lake is None:
            raise ConfigError("scores while training need images", next_step="eval_lake")
        source = open_lake(config.eval_lake)
        assert isinstance(source, (Lake, Lakes))
        self.config = config
        self.source = source
        self.templates = find_templates(config.eval_templates)
        self.labels = _labels(source, config)
        self.positions = self.labels.positions if self.labels else draw_sample(range(len(source)), config.eval_rows)
        if "retrieval" in config.eval_scores and not any(row.captions for row in source.read(self.positions[:1])):
            raise DataError(f"{source.path} has no captions to retrieve", next_step="--eval-scores without retrieval")
        self.latest: dict[str, float] = {}
        self._tokenize = tokenize
        self._image_size = image_size
        self._next = 0
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
        every = self.config.eval_every_steps
        if every is not None:
            self._next = (trainer.global_step // every + 1) * every
        elif self._next <= trainer.global_step:
            datamodule = getattr(trainer, "datamodule", None)
            pairs = datamodule.batch_size if isinstance(datamodule, PairDataModule) else 1
            pairs *= trainer.world_size * pl_module.accumulate
            encoded = len(self.positions) + self._num_prompts
            self._next = next_step(trainer.global_step, encoded / _STEP_PER_FORWARD / pairs, 1.0)

    @property
    def _num_prompts(self) -> int:
        return len(self.labels.classes) * len(self.templates.templates) if self.labels else 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        step = trainer.global_step
        # A batch whose gradients are only added up is no step.
        if step == self._scored_at or (step < self._next and step != pl_module.total_steps):
            return
        before, started = self._ended, time.perf_counter()
        with _clock(trainer).running():
            self._score(trainer, pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.pause()
        self._ended = time.perf_counter()
        if self.config.eval_every_steps is not None:
            self._next = step + self.config.eval_every_steps
        else:
            a_step = (started - before) / (step - self._scored_at)
            # The processes' clocks differ: that of the first counts.
            self._next = trainer.strategy.broadcast(next_step(step, self._ended - started, a_step))
        self._scored_at = step

    # ── the scores ────────────────────────────────────────────────────────────────────────────────────────────────

    def _score(self, trainer: L.Trainer, module: ContrastiveModule) -> None:
        scores: dict[str, float] | LakeclipError
        try:
            with averaged(trainer, module), trainer.precision_plugin.forward_context(), without_bars():
                scores = self.take(module.model, *self._reader(trainer, module))
        except LakeclipError as error:
            scores = error
        if isinstance(scores, LakeclipError):
            if trainer.is_global_zero:
                sys.stderr.write(f"no scores at step {trainer.global_step}: {scores}\n")
            return
        self.latest = scores
        for logger in trainer.loggers:
            # As Lightning counts what it logs itself: from 0.
            logger.log_metrics({f"eval/{name}": value for name, value in scores.items()}, step=trainer.global_step - 1)
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

    def take(self, model: CLIP | DualEncoder, tokenize: Tokenize, transform: EvalTransform) -> dict[str, float]:
        """All scores of a model, on all processes of the run together; shares are 0…1.

        Raises:
            LakeclipError: the images cannot be read, or the features are not finite.
        """
        wanted = self.config.eval_scores
        features, positions, captions = self._encode(model, transform)
        scores: dict[str, float] = {}
        if self.labels is not None:
            target_of = dict(zip(self.labels.positions, self.labels.targets, strict=True))
            targets = torch.tensor([target_of[position] for position in positions])
            if "zeroshot" in wanted:
                weights = classifier_weights(model, tokenize, self.labels.classes, self.templates.templates).cpu()
                answers = classify(features, weights, model.logit_scale.detach().cpu())
                result = count_answers(answers, targets, self.labels, self.templates)
                scores["zeroshot_top1"] = result.top1
                scores["zeroshot_top5"] = result.top5
                scores["zeroshot_mean_per_class"] = result.mean_per_class
                assert result.calibration is not None
                scores["zeroshot_calibration_error"] = result.calibration.error
            if "robustness" in wanted:
                scores["robustness_top1"] = self._robustness(model, tokenize, transform)
            if "probe" in wanted:
                # Positions are in the lake's order, which may be that of the classes.
                mixed = torch.from_numpy(np.random.default_rng(0).permutation(len(targets)))
                fit, test = mixed[::2], mixed[1::2]
                scores["probe_top1"] = linear_probe(features[fit], targets[fit], features[test], targets[test]).top1
        if "retrieval" in wanted:
            texts = [text for own in captions for text in own]
            owners = torch.tensor([image for image, own in enumerate(captions) for _ in own])
            found = retrieval_metrics(features, encode_texts(model, tokenize, texts).cpu(), owners)
            for way, ranking in (("image_to_text", found.image_to_text), ("text_to_image", found.text_to_image)):
                scores |= {f"{way}_R@{k}": share for k, share in ranking.recall.items()}
        return scores

    def _robustness(self, model: CLIP | DualEncoder, tokenize: Tokenize, transform: EvalTransform) -> float:
        """Mean top-1 (0…1) over copies of middling severity, each process having scored its share."""
        assert self.labels is not None
        rank, world = _share(model)
        own = self.labels.at(self.positions[rank::world])

        def score() -> tuple[float, int]:
            found = robustness(model, tokenize, transform, self.source, own, self.templates, severities=(3,))
            return found.mean * found.num_samples, found.num_samples

        right, number = zip(*_of_all(score, world), strict=True)
        return float(sum(right) / sum(number))

    def _encode(
        self, model: CLIP | DualEncoder, transform: EvalTransform
    ) -> tuple[Tensor, list[int], list[tuple[str, ...]]]:
        """Features of the images, (images, embed) on the CPU, each process having encoded its share."""
        rank, world = _share(model)

        def encode() -> tuple[Tensor, list[int], list[tuple[str, ...]]]:
            images = encode_images(
                model,
                self.source,
                transform,
                positions=self.positions[rank::world],
                with_captions="retrieval" in self.config.eval_scores,
            )
            return images.features.cpu(), images.positions, images.captions

        parts = _of_all(encode, world)
        features, positions, captions = zip(*parts, strict=True)
        # In the order of one process alone, whatever their number.
        rows = sorted(zip(chain(*positions), range(sum(map(len, positions))), chain(*captions), strict=True))
        order = torch.tensor([place for _, place, _ in rows])
        return torch.cat(features)[order], [row for row, _, _ in rows], [own for _, _, own in rows]


def next_step(step: int, seconds: float, seconds_per_step: float, share: float = SHARE) -> int:
    """The step after which the next scores are due, for scoring to take a share of the time.

    Args:
        step: the present one.
        seconds: that scoring takes.
        seconds_per_step: of training, in the same unit.
    """
    return step + max(1, math.ceil(seconds / (share * max(seconds_per_step, 1e-9))))


def _labels(source: Lake | Lakes, config: EvaluationConfig) -> Labels | None:
    if config.eval_label_column is None:
        return None
    classes = parse_classes(config.eval_classes) if config.eval_classes else None
    labels = read_labels(source, config.eval_label_column, classes)
    labels = labels.at(draw_sample(labels.positions, config.eval_rows))
    if "probe" in config.eval_scores and len(labels.positions) < max(20, 2 * len(set(labels.targets))):
        raise DataError(
            "a linear probe while training has half of the images to learn from, and too few of each class",
            found=f"{len(labels.positions)} images of {len(set(labels.targets))} classes",
            next_step=f"--eval-rows {max(20, 2 * len(set(labels.targets)))} or more, or --eval-scores zeroshot",
        )
    return labels


def _share(model: CLIP | DualEncoder) -> tuple[int, int]:
    """Which of how many parts of the images this process encodes.

    A model that is cut up computes on all processes at once, so each must have as many batches: there, all of them.
    """
    together = dist.is_available() and dist.is_initialized() and not isinstance(model, FSDPModule)
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def _of_all(work: Callable[[], Part], world: int) -> list[Part]:
    """What every process has of a piece of work, by rank. The error of one is raised on all, so that none waits.

    Raises:
        LakeclipError: of the first process that met one.
    """
    part: Part | LakeclipError
    try:
        part = work()
    except LakeclipError as error:
        part = error
    parts: list[Any] = [part]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, part)
    for one in parts:
        if isinstance(one, LakeclipError):
            raise one
    return parts


def _clock(trainer: L.Trainer) -> EvaluationClock:
    clocks = [one for one in trainer.callbacks if isinstance(one, EvaluationClock)]  # type: ignore[attr-defined]
    return clocks[0] if clocks else EvaluationClock()
