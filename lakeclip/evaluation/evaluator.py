"""Evaluator that computes registered scores of a model: while it trains, or for `lakeclip.evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lakeclip.config.schema import EvaluationConfig
from lakeclip.data.order import sample_positions
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ConfigError, InputWarning, print_warnings
from lakeclip.evaluation.classifier import check_prompts
from lakeclip.evaluation.distributed import find_shard, gather_parts
from lakeclip.evaluation.encode import encode_images
from lakeclip.evaluation.labels import Labels, parse_classes, read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.registry import EVALUATIONS, EvaluationData, EvaluationRows
from lakeclip.evaluation.run import EncodeConfig, load_model
from lakeclip.lake.dataset import open_lake
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

if TYPE_CHECKING:
    from lakeclip.checkpoints.native import LoadedModel
    from lakeclip.lake.rows import RowSource


def evaluate(
    model: str | Path | LoadedModel,
    lake: str | Path,
    scores: Sequence[str] = ("zeroshot",),
    *,
    label_column: str | None = None,
    query: str | None = None,
    classes: str | None = None,
    templates: str = "simple",
    rows: int | None = None,
    encode: EncodeConfig | None = None,
) -> dict[str, float]:
    """Compute registered scores on a lake, the same ones that a run records with --eval-scores.

    Args:
        model: a run folder or a .ckpt file; openai:FILE, open_clip:FILE or huggingface:FOLDER; or a loaded model.
        lake: Deep Lake dataset with images.
        scores: names in `EVALUATIONS`.
        label_column: column with the labels, for scores that need labels.
        query: WHERE clause of a Deep Lake query that selects the rows to score.
        classes: class names between commas, or a file with one per line. Default: the labels in the column.
        templates: name of a set of prompts, or a file with one per line.
        rows: score at most this many rows, always the same ones; all by default.
        encode: batch size, workers, device and precision.

    Returns:
        Scores by name; shares are 0…1.

    Raises:
        LakeclipError: a score is not registered, or the checkpoint, the lake, its labels or the prompts are wrong.
    """
    encode = encode or EncodeConfig()
    config = EvaluationConfig(
        eval_lake=str(lake),
        eval_label_column=label_column,
        eval_classes=classes,
        eval_templates=templates,
        eval_scores=tuple(scores),
        eval_rows=sys.maxsize if rows is None else rows,
    )
    evaluator = Evaluator(config, query=query, encode=encode)
    print_warnings(evaluator.warnings)
    return evaluator.score(*load_model(model, encode))


class Evaluator:
    """Rows of a lake, and the scores that are computed on them.

    Args:
        config: the rows and the scores.
        query: WHERE clause of a Deep Lake query that selects the rows.
        encode: batch size and workers; device and precision are those of the model.

    Raises:
        ConfigError: a score is not registered, or it needs labels and there is no label column.
        LakeclipError: the lake, its labels or the prompts are unavailable, or the rows do not suffice for a score.
    """

    def __init__(
        self, config: EvaluationConfig, *, query: str | None = None, encode: EncodeConfig | None = None
    ) -> None:
        if config.eval_lake is None:
            raise ConfigError("an evaluation during training needs a lake of images", next_step="--eval-lake LAKE")
        self.evaluations = EVALUATIONS.select(config.eval_scores)
        unlabelled = [name for name, evaluation in self.evaluations.items() if "labels" in evaluation.needs]
        if unlabelled and config.eval_label_column is None:
            others = [name for name in EVALUATIONS if "labels" not in EVALUATIONS[name].needs]
            raise ConfigError(
                "this evaluation needs labels",
                found=f"eval_scores {' '.join(config.eval_scores)}, and no eval_label_column",
                next_step=f"--eval-label-column COLUMN, or --eval-scores {others[0]}",
            )
        templates = find_templates(config.eval_templates)
        source = open_lake(config.eval_lake, query)
        labels = _read_labels(source, config)
        positions = labels.positions if labels else sample_positions(range(len(source)), config.eval_rows)
        self.rows = EvaluationRows(source, positions, labels, templates)
        self._encode_config = encode or EncodeConfig()
        for evaluation in self.evaluations.values():
            if evaluation.check is not None:
                evaluation.check(self.rows)

    @property
    def warnings(self) -> tuple[InputWarning, ...]:
        """Warnings about the labels."""
        return self.rows.labels.warnings if self.rows.labels else ()

    def check_prompts(self, tokenize: Tokenize) -> list[InputWarning]:
        """Check that a model with this tokenizer can tell the classes apart by their prompts; return warnings.

        Raises:
            DataError: the prompts of all classes have the same token ids.
        """
        if self.rows.labels is None or not {"zeroshot", "robustness"} & set(self.evaluations):
            return []
        return check_prompts(tokenize, self.rows.labels.classes, self.rows.templates.templates)

    def __len__(self) -> int:
        """Return the number of images and prompts that are encoded."""
        labels = self.rows.labels
        num_prompts = len(labels.classes) * len(self.rows.templates.templates) if labels else 0
        return len(self.rows.positions) + num_prompts

    def score(self, model: CLIP | DualEncoder, tokenize: Tokenize, transform: EvalTransform) -> dict[str, float]:
        """Compute all scores of a model; the processes of a distributed run share the work. Shares are 0…1.

        Raises:
            LakeclipError: the images cannot be read, or the features are not finite.
        """
        self.check_prompts(tokenize)
        features, positions, captions = self._encode(model, transform)
        targets, labels = None, self.rows.labels
        if labels is not None:
            target_of = dict(zip(labels.positions, labels.targets, strict=True))
            targets = torch.tensor([target_of[position] for position in positions])
        data = EvaluationData(model, tokenize, transform, self.rows, features, targets, captions)
        scores: dict[str, float] = {}
        for evaluation in self.evaluations.values():
            scores |= evaluation.score(data)
        return scores

    def _encode(
        self, model: CLIP | DualEncoder, transform: EvalTransform
    ) -> tuple[Tensor, list[int], list[tuple[str, ...]]]:
        """Encode the images on all processes: features (images, embed) on the CPU, positions and captions."""
        shard = find_shard(model)

        def encode() -> tuple[Tensor, list[int], list[tuple[str, ...]]]:
            images = encode_images(
                model,
                self.rows.source,
                transform,
                positions=self.rows.positions[shard.items],
                with_captions=any("captions" in evaluation.needs for evaluation in self.evaluations.values()),
                batch_size=self._encode_config.batch_size,
                num_workers=self._encode_config.num_workers,
            )
            return images.features.cpu(), images.positions, images.captions

        features, positions, captions = zip(*gather_parts(encode, shard.count), strict=True)
        # Restore the order of a single process, so that the number of processes does not change the scores.
        num_images = sum(map(len, positions))
        rows = sorted(zip(chain(*positions), range(num_images), chain(*captions), strict=True))
        order = torch.tensor([index for _, index, _ in rows])
        return torch.cat(features)[order], [position for position, _, _ in rows], [texts for _, _, texts in rows]


def _read_labels(source: RowSource, config: EvaluationConfig) -> Labels | None:
    if config.eval_label_column is None:
        return None
    classes = parse_classes(config.eval_classes) if config.eval_classes else None
    labels = read_labels(source, config.eval_label_column, classes)
    return labels.select_rows(sample_positions(labels.positions, config.eval_rows))
