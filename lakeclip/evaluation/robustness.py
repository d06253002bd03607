"""Robustness: zero-shot accuracy on corrupted copies of images, and on lakes with another distribution.

Zero-shot CLIP is unusually robust (Radford et al. 2021, section 3.3), and fine-tuning can take that away without any
change in the accuracy on clean images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ImageError
from lakeclip.evaluation.classifier import classifier_weights, classify
from lakeclip.evaluation.classifier_cache import ClassifierCache
from lakeclip.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from lakeclip.evaluation.distributed import find_shard, gather_parts
from lakeclip.evaluation.encode import encode_images
from lakeclip.evaluation.labelled import encode_labelled
from lakeclip.evaluation.labels import Labels
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.registry import Evaluation, EvaluationData
from lakeclip.lake.rows import Indices, Row, RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Features in memory at once, over all copies: half a gigabyte with 512 dimensions.
_MAX_COPIES = 1 << 18


@dataclass(frozen=True)
class Shift:
    """Distribution shift: the score on another lake with the same labels, for example sketches instead of photos.

    Attributes:
        name: path of the lake.
        top1: zero-shot top-1 (0…1) on it.
        clean: zero-shot top-1 on the images of the first lake whose classes also occur in this one.
        num_samples: images of this lake that were scored.
    """

    name: str
    top1: float
    clean: float
    num_samples: int


@dataclass(frozen=True)
class RobustnessResult:
    """Zero-shot top-1 (0…1) on clean images, on corrupted copies, and on other lakes.

    Attributes:
        clean: top-1 on the clean images.
        top1: corruption → top-1 by severity, in the order of `severities`.
        severities: 1 (weakest) to 5.
        shifts: scores on other lakes.
        num_samples, num_classes: images and classes of the first lake.
        num_undecodable, num_unlabelled: rows of the first lake that were skipped.
        templates: prompts that the class names were inserted into.
    """

    clean: float
    top1: dict[str, tuple[float, ...]]
    severities: tuple[int, ...]
    shifts: tuple[Shift, ...]
    num_samples: int
    num_classes: int
    num_undecodable: int
    num_unlabelled: int
    templates: TemplateSet

    @property
    def mean(self) -> float:
        """Mean top-1 over all corruptions and severities."""
        return float(np.mean(list(self.top1.values())))

    @property
    def mean_relative_drop(self) -> float:
        """Share of the clean accuracy lost on average over corruptions and severities; negative for a gain."""
        return 1 - self.mean / self.clean if self.clean else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as written by `lakeclip evaluate robustness --json`."""
        return {
            "clean": self.clean,
            "mean": self.mean,
            "mean_relative_drop": self.mean_relative_drop,
            "severities": list(self.severities),
            "top1": {name: list(scores) for name, scores in self.top1.items()},
            "shifts": [
                {
                    "lake": shift.name,
                    "top1": shift.top1,
                    "clean_on_its_classes": shift.clean,
                    "num_samples": shift.num_samples,
                }
                for shift in self.shifts
            ],
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "num_undecodable": self.num_undecodable,
            "num_unlabelled": self.num_unlabelled,
            "templates": list(self.templates.templates),
        }


def robustness(
    model: CLIP | DualEncoder,
    tokenize: Tokenize,
    transform: EvalTransform,
    source: RowSource,
    labels: Labels,
    templates: TemplateSet,
    *,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    shifted: Sequence[tuple[RowSource, Labels]] = (),
    seed: int = 0,
    batch_size: int = 128,
    num_workers: int = 0,
    cache: ClassifierCache | None = None,
) -> RobustnessResult:
    """Score a model on a source's labelled images, on corrupted copies of them, and on other sources.

    Args:
        labels: class of each row; see `read_labels`.
        corruptions, severities: at least one of each; every combination is scored.
        shifted: other sources, with labels that number the classes as `labels` does.
        seed: seed of the random parts of the corruptions.
        cache: classifiers of earlier evaluations; see `default_classifier_cache`.

    Raises:
        LakeclipError: a source cannot be read, or the model's features are not finite.
    """
    weights = classifier_weights(model, tokenize, labels.classes, templates.templates, cache=cache)
    copies = ShiftedCopies(source, transform, [(name, level) for name in corruptions for level in severities], seed)
    num_right, num_per_class, num_undecodable = _score_copies(model, copies, labels, weights, batch_size, num_workers)
    num_samples = int(num_per_class.sum())
    top1_of_copy = (num_right.sum(axis=1) / num_samples).tolist()
    shifts = []
    for other, other_labels in shifted:
        images = encode_labelled(model, transform, other, other_labels, batch_size=batch_size, num_workers=num_workers)
        nearest = classify(images.features, weights, model.logit_scale).nearest[:, 0]
        classes = np.unique(images.targets.numpy())
        clean = float(num_right[0, classes].sum() / max(1, num_per_class[classes].sum()))
        top1 = float((nearest == images.targets).double().mean())
        shifts.append(Shift(other.path, top1, clean, len(nearest)))
    num_levels = len(severities)
    return RobustnessResult(
        clean=top1_of_copy[0],
        top1={
            name: tuple(top1_of_copy[1 + index * num_levels : 1 + (index + 1) * num_levels])
            for index, name in enumerate(corruptions)
        },
        severities=tuple(severities),
        shifts=tuple(shifts),
        num_samples=num_samples,
        num_classes=len(labels.classes),
        num_undecodable=num_undecodable,
        num_unlabelled=labels.num_unlabelled,
        templates=templates,
    )


def _score_copies(
    model: CLIP | DualEncoder,
    copies: ShiftedCopies,
    labels: Labels,
    weights: Float[Tensor, "classes embed"],
    batch_size: int,
    num_workers: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Count correct predictions (copies, classes), images (classes,), and images that could not be decoded."""
    num_copies, num_classes = copies.num_copies, len(labels.classes)
    target_of = dict(zip(labels.positions, labels.targets, strict=True))
    num_right = np.zeros((num_copies, num_classes), np.int64)
    num_images = np.zeros(num_classes, np.int64)
    undecodable: set[int] = set()
    positions = np.array(labels.positions)
    for part in np.array_split(positions, math.ceil(len(positions) * num_copies / _MAX_COPIES)):
        images = encode_images(
            model,
            copies,
            # The copies already have the model's size, so this transform resizes nothing.
            copies.transform,
            positions=(part[:, None] * num_copies + np.arange(num_copies)).ravel().tolist(),
            with_captions=False,
            # All copies of an image in one batch, so that it is decoded once.
            batch_size=batch_size // num_copies * num_copies or batch_size,
            num_workers=num_workers,
        )
        position, copy = np.divmod(np.array(images.positions), num_copies)
        targets = np.array([target_of[index] for index in position.tolist()])
        nearest = classify(images.features, weights, model.logit_scale).nearest[:, 0]
        np.add.at(num_right, (copy, targets), (nearest == torch.from_numpy(targets)).numpy())
        num_images += np.bincount(targets[copy == 0], minlength=num_classes)
        undecodable |= {image.row for image in images.undecodable}
    return num_right, num_images, len(undecodable)


class ShiftedCopies(RowSource):
    """A `RowSource` of copies of another source's images: each image clean, then once per corruption.

    Index `i` is copy `i % num_copies` of image `i // num_copies`, cropped and resized for the model. An image is
    decoded once for all of its copies. Picklable.

    Args:
        shifts: (corruption, severity) of each copy but the first.
        seed: seed of the random parts of the corruptions.
    """

    def __init__(
        self, source: RowSource, transform: EvalTransform, shifts: Sequence[tuple[str, int]], seed: int
    ) -> None:
        self.source = source
        self.transform = transform
        self.shifts = list(shifts)
        self.seed = seed
        self.num_copies = 1 + len(self.shifts)
        self.path = source.path
        self.version = f"{source.version} {self.shifts} {seed}"
        self.columns = source.columns

    def __len__(self) -> int:
        return len(self.source) * self.num_copies

    def column(self, name: str) -> list[object]:
        """Return the values of one column, for every copy."""
        return [value for value in self.source.column(name) for _ in range(self.num_copies)]

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.source[index // self.num_copies]

    def read(self, indices: Indices, *, with_captions: bool = False) -> list[Row]:
        """Read the copies at these indices, without captions; an undecodable image is returned as stored."""
        requested = [divmod(int(index), self.num_copies) for index in indices]
        originals = sorted({position for position, _ in requested})
        rows = self.source.read(originals, with_captions=False)
        read = {position: self._decode(row) for position, row in zip(originals, rows, strict=True)}
        return [self._copy(*read[position], copy) for position, copy in requested]

    def _decode(self, row: Row) -> tuple[Row, NDArray[np.uint8] | None]:
        try:
            return row, np.ascontiguousarray(self.transform(row.image).permute(1, 2, 0).numpy())
        except ImageError:
            return row, None

    def _copy(self, row: Row, pixels: NDArray[np.uint8] | None, copy: int) -> Row:
        if pixels is None:
            return Row(row.row, row.image, ())
        if copy:
            name, severity = self.shifts[copy - 1]
            pixels = np.ascontiguousarray(corrupt(pixels, name, severity, seed=self.seed, row=row.row))
        # The encoder reads encoded bytes; PPM costs next to nothing to write and to decode.
        height, width = pixels.shape[:2]
        return Row(row.row, b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes(), ())


def _score(data: EvaluationData) -> dict[str, float]:
    """Return the mean top-1 over corruptions of severity 3; each process scores its shard of the images."""
    shard = find_shard(data.model)
    labels = data.labels.select_rows(data.rows.positions[shard.items])

    def count_right() -> tuple[float, int]:
        result = robustness(
            data.model, data.tokenize, data.transform, data.rows.source, labels, data.rows.templates, severities=(3,)
        )
        return result.mean * result.num_samples, result.num_samples

    num_right, num_images = zip(*gather_parts(count_right, shard.count), strict=True)
    return {"robustness_top1": float(sum(num_right) / sum(num_images))}


EVALUATION = Evaluation(
    _score,
    about="Classify corrupted copies of the images by the class names alone.",
    needs=("labels",),
    curves={"robustness_top1": "zero-shot top-1, corrupted copies"},
)
