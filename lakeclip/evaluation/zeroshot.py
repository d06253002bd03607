"""Zero-shot classification, scored: an image's class is that whose prompts are nearest (Radford et al. 2021, 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.calibration import Calibration, calibration
from lakeclip.evaluation.classifier import Answers, classifier_weights, classify
from lakeclip.evaluation.labelled import encode_labelled
from lakeclip.evaluation.labels import Labels
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.remembered import RememberedClassifiers
from lakeclip.lake.rows import RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize


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
        calibration: how far the model's confidence can be believed; None where only answers were counted.
        cleaned: label → class name, of those that are said otherwise than they are written.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    top1: float
    top5: float
    templates: TemplateSet
    num_unlabelled: int = 0
    num_undecodable: int = 0
    calibration: Calibration | None = None
    cleaned: dict[str, str] = field(default_factory=dict)

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
            "calibration": self.calibration.to_json() if self.calibration else None,
            "num_samples": self.num_samples,
            "num_unlabelled": self.num_unlabelled,
            "num_undecodable": self.num_undecodable,
            "classes": list(self.classes),
            "cleaned_names": self.cleaned,
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
    remembered: RememberedClassifiers | None = None,
) -> ZeroShotResult:
    """Score a model on the labelled images of a source.

    Args:
        labels: what the rows show; see `read_labels`.
        templates: what the class names are put into; see `find_templates`.
        remembered: classifiers of earlier evaluations; see `remembered_classifiers`.

    Raises:
        LakeclipError: the source cannot be read, or the model's features are not finite.
    """
    weights = classifier_weights(model, tokenize, labels.classes, templates.templates, remembered=remembered)
    images = encode_labelled(model, transform, source, labels, batch_size=batch_size, num_workers=num_workers)
    answers = classify(images.features, weights, model.logit_scale)
    return count_answers(answers, images.targets, labels, templates, num_undecodable=len(images.undecodable))


def count_answers(
    answers: Answers,
    targets: Int64[Tensor, " images"],
    labels: Labels,
    templates: TemplateSet,
    *,
    num_undecodable: int = 0,
) -> ZeroShotResult:
    """The result of a classification.

    Args:
        answers: to each image that could be decoded.
        targets: its class.
        labels, templates: what was asked for, and how.
    """
    confusion, top5 = count(answers.nearest, targets, len(labels.classes))
    return ZeroShotResult(
        classes=labels.classes,
        confusion=confusion,
        top1=float(np.trace(confusion) / len(targets)),
        top5=top5 / len(targets),
        templates=templates,
        num_unlabelled=labels.num_unlabelled,
        num_undecodable=num_undecodable,
        calibration=calibration(answers.confidence, answers.nearest[:, 0] == targets),
        cleaned=labels.cleaned,
    )


def count(
    nearest: Int64[Tensor, "images nearest"], targets: Int64[Tensor, " images"], num_classes: int
) -> tuple[NDArray[np.int64], int]:
    """The confusion matrix (true class down, predicted across), and how many images have theirs among the nearest."""
    confusion = torch.bincount(targets * num_classes + nearest[:, 0], minlength=num_classes**2)
    matrix: NDArray[np.int64] = confusion.view(num_classes, num_classes).numpy()
    return matrix, int((nearest == targets[:, None]).any(dim=1).sum())
