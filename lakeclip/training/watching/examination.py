"""The scores that a run takes on the way: of what model, on which images, by all of its processes together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lakeclip.config.schema import EvaluationConfig
from lakeclip.data.order import draw_sample
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ConfigError, DataError, LakeclipError
from lakeclip.evaluation.classifier import classifier_weights, classify
from lakeclip.evaluation.encode import encode_images, encode_texts
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
from lakeclip.types import Tokenize

Part = TypeVar("Part")


class Examination:
    """Labelled or captioned images of a lake, and the scores that a model gets on them.

    Args:
        config: which images, and which scores.

    Raises:
        LakeclipError: the lake, its labels or the prompts cannot be had.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        if config.eval_lake is None:
            raise ConfigError("scores while training need images", next_step="eval_lake")
        self.source = open_lake(config.eval_lake)
        self.wanted = config.eval_scores
        self.templates = find_templates(config.eval_templates)
        self.labels = _labels(self.source, config)
        self.positions = (
            self.labels.positions if self.labels else draw_sample(range(len(self.source)), config.eval_rows)
        )
        if "retrieval" in self.wanted and not any(row.captions for row in self.source.read(self.positions[:1])):
            raise DataError(
                f"{self.source.path} has no captions to retrieve", next_step="--eval-scores without retrieval"
            )

    def __len__(self) -> int:
        """Images and prompts that are encoded."""
        num_prompts = len(self.labels.classes) * len(self.templates.templates) if self.labels else 0
        return len(self.positions) + num_prompts

    def take(self, model: CLIP | DualEncoder, tokenize: Tokenize, transform: EvalTransform) -> dict[str, float]:
        """All scores of a model, on all processes of the run together; shares are 0…1.

        Raises:
            LakeclipError: the images cannot be read, or the features are not finite.
        """
        features, positions, captions = self._encode(model, transform)
        scores: dict[str, float] = {}
        if self.labels is not None:
            target_of = dict(zip(self.labels.positions, self.labels.targets, strict=True))
            targets = torch.tensor([target_of[position] for position in positions])
            if "zeroshot" in self.wanted:
                weights = classifier_weights(model, tokenize, self.labels.classes, self.templates.templates).cpu()
                answers = classify(features, weights, model.logit_scale.detach().cpu())
                result = count_answers(answers, targets, self.labels, self.templates)
                scores["zeroshot_top1"] = result.top1
                scores["zeroshot_top5"] = result.top5
                scores["zeroshot_mean_per_class"] = result.mean_per_class
                assert result.calibration is not None
                scores["zeroshot_calibration_error"] = result.calibration.error
            if "robustness" in self.wanted:
                scores["robustness_top1"] = self._robustness(model, tokenize, transform)
            if "probe" in self.wanted:
                # Positions are in the lake's order, which may be that of the classes.
                mixed = torch.from_numpy(np.random.default_rng(0).permutation(len(targets)))
                fit, test = mixed[::2], mixed[1::2]
                scores["probe_top1"] = linear_probe(features[fit], targets[fit], features[test], targets[test]).top1
        if "retrieval" in self.wanted:
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
                with_captions="retrieval" in self.wanted,
            )
            return images.features.cpu(), images.positions, images.captions

        parts = _of_all(encode, world)
        features, positions, captions = zip(*parts, strict=True)
        # In the order of one process alone, whatever their number.
        rows = sorted(zip(chain(*positions), range(sum(map(len, positions))), chain(*captions), strict=True))
        order = torch.tensor([place for _, place, _ in rows])
        return torch.cat(features)[order], [row for row, _, _ in rows], [own for _, _, own in rows]


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
