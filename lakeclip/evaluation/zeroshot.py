"""Zero-shot classification: an image is of the class whose prompts its features are nearest to.

Radford et al. 2021, section 3.1: the features of a class's sentences are scaled to unit length, averaged, and scaled to
unit length again; the classifier is then one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.encode import encode_images, encode_texts
from lakeclip.evaluation.labels import Labels
from lakeclip.evaluation.prompts import TemplateSet, fill
from lakeclip.lake.rows import RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Classes whose prompts are encoded together.
_CLASSES_AT_ONCE = 512
#: Images whose logits are held together.
_IMAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class ClassScore:
    """One class: how many images it has, how many of them were found, how often its name was given in vain."""

    name: str
    num_samples: int
    num_right: int
    num_false: int

    @property
    def accuracy(self) -> float | None:
        """Share of its images that were found (recall); None where it has none."""
        return self.num_right / self.num_samples if self.num_samples else None

    @property
    def precision(self) -> float | None:
        """Share of the images given its name that are of it; None where none was."""
        given = self.num_right + self.num_false
        return self.num_right / given if given else None


@dataclass(frozen=True)
class ZeroShotResult:
    """A zero-shot classification, counted.

    Attributes:
        classes: names, in the order of the matrix.
        confusion: (classes, classes) counts, true class down and predicted class across.
        top1: share of images (0…1) whose nearest class is theirs.
        top5: share whose class is among the five nearest; 1 where there are no more than five classes.
        templates: sentences that the names were put into.
        num_unlabelled, num_undecodable: rows that were left out.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    top1: float
    top5: float
    templates: TemplateSet
    num_unlabelled: int = 0
    num_undecodable: int = 0

    @property
    def num_samples(self) -> int:
        """Images that were scored."""
        return int(self.confusion.sum())

    @property
    def chance(self) -> float:
        """Accuracy of guessing blindly."""
        return 1 / len(self.classes)

    @property
    def per_class(self) -> tuple[ClassScore, ...]:
        """Every class, in the order of `classes`."""
        right = np.diagonal(self.confusion)
        columns = zip(self.classes, self.confusion.sum(axis=1), right, self.confusion.sum(axis=0) - right, strict=True)
        return tuple(ClassScore(name, int(n), int(hit), int(false)) for name, n, hit, false in columns)

    @property
    def mean_per_class(self) -> float:
        """Accuracy where every class that has images counts the same."""
        return float(np.mean([score.accuracy for score in self.per_class if score.accuracy is not None]))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of `top1` (Wilson 1927): how far another sample of this size might differ."""
        n, z = self.num_samples, 1.96
        centre = (self.top1 + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.top1 * (1 - self.top1) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def confusions(self, most: int = 10) -> list[tuple[str, str, int]]:
        """The commonest mistakes: (true class, predicted class, count), most common first."""
        wrong = self.confusion * (1 - np.eye(len(self.classes), dtype=np.int64))
        order = np.argsort(wrong, axis=None, kind="stable")[::-1][:most]
        pairs = [divmod(int(i), len(self.classes)) for i in order]
        return [(self.classes[a], self.classes[b], int(wrong[a, b])) for a, b in pairs if wrong[a, b]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written by `lakeclip evaluate zeroshot --json`."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "top1_interval_95": list(self.interval),
            "chance": self.chance,
            "num_samples": self.num_samples,
            "num_unlabelled": self.num_unlabelled,
            "num_undecodable": self.num_undecodable,
            "classes": list(self.classes),
            "per_class": [
                {
                    "name": score.name,
                    "accuracy": score.accuracy,
                    "precision": score.precision,
                    "num_samples": score.num_samples,
                }
                for score in self.per_class
            ],
            "confusion": self.confusion.tolist(),
            "templates": list(self.templates.templates),
        }


def zero_shot(
    model: CLIP | DualEncoder,
    tokenize: Tokenize,
    transform: EvalTransform,
    source: RowSource,
    labels: Labels,
    templates: TemplateSet,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
) -> ZeroShotResult:
    """Score a model on the labelled images of a source.

    Args:
        labels: what the rows show; see `read_labels`.
        templates: what the class names are put into; see `find_templates`.

    Raises:
        LakeclipError: the source cannot be read, or the model's features are not finite.
    """
    weights = classifier_weights(model, tokenize, labels.classes, templates.templates)
    images = encode_images(
        model,
        source,
        transform,
        positions=labels.positions,
        with_captions=False,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    target_of = dict(zip(labels.positions, labels.targets, strict=True))
    targets = torch.tensor([target_of[position] for position in images.positions])
    confusion, top5 = count(images.features, weights, targets)
    return ZeroShotResult(
        classes=labels.classes,
        confusion=confusion,
        top1=float(np.trace(confusion) / len(targets)),
        top5=top5 / len(targets),
        templates=templates,
        num_unlabelled=labels.num_unlabelled,
        num_undecodable=len(images.undecodable),
    )


def classifier_weights(
    model: CLIP | DualEncoder, tokenize: Tokenize, classes: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes embed"]:
    """One unit vector per class: the mean of the unit-length features of its sentences."""
    weights = []
    for start in range(0, len(classes), _CLASSES_AT_ONCE):
        names = classes[start : start + _CLASSES_AT_ONCE]
        features = encode_texts(model, tokenize, [text for name in names for text in fill(templates, name)])
        weights.append(F.normalize(features.view(len(names), len(templates), -1).mean(dim=1), dim=-1))
    return torch.cat(weights)


def count(
    image_features: Float[Tensor, "images embed"],
    weights: Float[Tensor, "classes embed"],
    targets: Int64[Tensor, " images"],
) -> tuple[NDArray[np.int64], int]:
    """The confusion matrix (true class down, predicted across), and how many images have theirs in the nearest five."""
    num_classes = len(weights)
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    top5 = 0
    for start in range(0, len(targets), _IMAGES_AT_ONCE):
        wanted = targets[start : start + _IMAGES_AT_ONCE]
        nearest = (
            (image_features[start : start + _IMAGES_AT_ONCE] @ weights.T).topk(min(5, num_classes), dim=1).indices.cpu()
        )
        confusion += torch.bincount(wanted * num_classes + nearest[:, 0], minlength=num_classes**2)
        top5 += int((nearest == wanted[:, None]).any(dim=1).sum())
    matrix: NDArray[np.int64] = confusion.view(num_classes, num_classes).numpy()
    return matrix, top5
