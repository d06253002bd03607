"""Zero-shot classification: an image gets the class whose prompts are nearest (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.calibration import Calibration, compute_calibration
from lakeclip.evaluation.chance import Standing, compare_with_chance
from lakeclip.evaluation.classifier import Predictions, classifier_weights, classify
from lakeclip.evaluation.classifier_cache import ClassifierCache
from lakeclip.evaluation.labelled import encode_labelled
from lakeclip.evaluation.labels import Labels
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.registry import Evaluation, EvaluationData
from lakeclip.evaluation.significance import wilson_interval
from lakeclip.lake.rows import RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize


@dataclass(frozen=True)
class ClassScore:
    """Counts of one class: its images, how many were recognized, and how many false positives it has."""

    name: str
    num_samples: int
    num_right: int
    num_false: int

    @property
    def accuracy(self) -> float | None:
        """Recall: share of its images that were recognized; None if it has no images."""
        return self.num_right / self.num_samples if self.num_samples else None

    @property
    def precision(self) -> float | None:
        """Share of the images predicted as this class that belong to it; None if there are none."""
        num_predicted = self.num_right + self.num_false
        return self.num_right / num_predicted if num_predicted else None


@dataclass(frozen=True)
class ZeroShotResult:
    """Scores of a zero-shot classification.

    Attributes:
        classes: names, in the order of the matrix.
        confusion: (classes, classes) counts; rows are true classes, columns are predicted classes.
        top1: share of images (0…1) whose nearest class is correct.
        top5: share whose class is among the five nearest; None if there are at most five classes.
        templates: prompts that the class names were inserted into.
        num_unlabelled, num_undecodable: rows that were skipped.
        calibration: calibration of the model's confidence; None if it was not computed.
        cleaned: label → class name, for labels whose name was cleaned for the prompts.
        is_correct: (images,) for each image that could be decoded; empty if it was not recorded.
    """

    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    top1: float
    top5: float | None
    templates: TemplateSet
    num_unlabelled: int = 0
    num_undecodable: int = 0
    calibration: Calibration | None = None
    cleaned: dict[str, str] = field(default_factory=dict)
    is_correct: Bool[np.ndarray, " images"] = field(
        default_factory=lambda: np.zeros(0, dtype=np.bool_), repr=False, compare=False
    )

    @property
    def num_samples(self) -> int:
        """Images that were scored."""
        return int(self.confusion.sum())

    @property
    def chance(self) -> float:
        """Accuracy of guessing at random."""
        return 1 / len(self.classes)

    @property
    def standing(self) -> Standing:
        """Top-1 compared with guessing: at random, or at random in the proportions of the model's own predictions.

        The second matters if the classes have different numbers of images: a model that always predicts the most
        frequent class knows nothing, but has more than one in `len(classes)` right.
        """
        rows, columns = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        blind = float((rows * columns).sum() / max(1, self.num_samples) ** 2)
        return compare_with_chance(self.top1, max(self.chance, blind), self.num_samples)

    @property
    def per_class(self) -> tuple[ClassScore, ...]:
        """Every class, in the order of `classes`."""
        num_right = np.diagonal(self.confusion)
        num_false = self.confusion.sum(axis=0) - num_right
        columns = zip(self.classes, self.confusion.sum(axis=1), num_right, num_false, strict=True)
        return tuple(ClassScore(name, int(total), int(right), int(false)) for name, total, right, false in columns)

    @property
    def mean_per_class(self) -> float:
        """Mean of the classes' accuracies; classes without images are ignored."""
        return float(np.mean([score.accuracy for score in self.per_class if score.accuracy is not None]))

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of `top1` (Wilson 1927)."""
        return wilson_interval(self.top1, self.num_samples)

    def confusions(self, most: int = 10) -> list[tuple[str, str, int]]:
        """Return the most common mistakes as (true class, predicted class, count), most common first."""
        wrong = self.confusion * (1 - np.eye(len(self.classes), dtype=np.int64))
        order = np.argsort(wrong, axis=None, kind="stable")[::-1][:most]
        pairs = [divmod(int(index), len(self.classes)) for index in order]
        return [
            (self.classes[true], self.classes[predicted], int(wrong[true, predicted]))
            for true, predicted in pairs
            if wrong[true, predicted]
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as written by `lakeclip evaluate zeroshot --json`."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class": self.mean_per_class,
            "top1_interval_95": list(self.interval),
            "chance": self.chance,
            "verdict": self.standing.verdict,
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
    cache: ClassifierCache | None = None,
) -> ZeroShotResult:
    """Score a model on the labelled images of a source.

    Args:
        labels: class of each row; see `read_labels`.
        templates: prompts for the class names; see `find_templates`.
        cache: classifiers of earlier evaluations; see `default_classifier_cache`.

    Raises:
        LakeclipError: the source cannot be read, or the model's features are not finite.
    """
    weights = classifier_weights(model, tokenize, labels.classes, templates.templates, cache=cache)
    images = encode_labelled(model, transform, source, labels, batch_size=batch_size, num_workers=num_workers)
    predictions = classify(images.features, weights, model.logit_scale)
    return score_predictions(predictions, images.targets, labels, templates, num_undecodable=len(images.undecodable))


def score_predictions(
    predictions: Predictions,
    targets: Int64[Tensor, " images"],
    labels: Labels,
    templates: TemplateSet,
    *,
    num_undecodable: int = 0,
) -> ZeroShotResult:
    """Score the predictions of a zero-shot classifier.

    Args:
        predictions: for each image that could be decoded.
        targets: class of each.
        labels, templates: what the classifier was built from.
    """
    confusion, num_top5 = confusion_counts(predictions.nearest, targets, len(labels.classes))
    is_correct = predictions.nearest[:, 0] == targets
    return ZeroShotResult(
        classes=labels.classes,
        confusion=confusion,
        top1=float(np.trace(confusion) / len(targets)),
        top5=num_top5 / len(targets) if len(labels.classes) > predictions.nearest.shape[1] else None,
        templates=templates,
        num_unlabelled=labels.num_unlabelled,
        num_undecodable=num_undecodable,
        calibration=compute_calibration(predictions.confidence, is_correct),
        cleaned=labels.cleaned,
        is_correct=is_correct.numpy(),
    )


def confusion_counts(
    nearest: Int64[Tensor, "images nearest"], targets: Int64[Tensor, " images"], num_classes: int
) -> tuple[NDArray[np.int64], int]:
    """Return the confusion matrix (rows: true class, columns: predicted) and the number of top-k hits."""
    confusion = torch.bincount(targets * num_classes + nearest[:, 0], minlength=num_classes**2)
    matrix: NDArray[np.int64] = confusion.view(num_classes, num_classes).numpy()
    return matrix, int((nearest == targets[:, None]).any(dim=1).sum())


def _score(data: EvaluationData) -> dict[str, float]:
    """Score zero-shot classification on encoded images."""
    assert data.targets is not None
    weights = classifier_weights(data.model, data.tokenize, data.classes, data.rows.templates.templates).cpu()
    predictions = classify(data.features, weights, data.model.logit_scale.detach().cpu())
    result = score_predictions(predictions, data.targets, data.labels, data.rows.templates)
    assert result.calibration is not None
    return {
        "zeroshot_top1": result.top1,
        **({"zeroshot_top5": result.top5} if result.top5 is not None else {}),
        "zeroshot_mean_per_class": result.mean_per_class,
        "zeroshot_calibration_error": result.calibration.error,
    }


EVALUATION = Evaluation(
    _score,
    about="Classify images by the class names alone.",
    needs=("labels",),
    curves={"zeroshot_top1": "zero-shot top-1"},
)
