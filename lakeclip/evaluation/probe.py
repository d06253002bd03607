"""Linear probe: a linear classifier on frozen image features (Radford et al. 2021, section 3.2).

The classifier is a logistic regression fitted with L-BFGS (scikit-learn), with at most 1,000 iterations. The strength
of its L2 penalty is chosen on a held-out part of the training rows: first among seven values from 1e-6 to 1e6, then by
halving the interval around the best one, down to an eighth of a decade (appendix A.3 of the paper).

Every class of the training images has at least one image in the part that the classifier is fitted on: the last image
of a class is not held out. A few-shot classifier with n examples of each class leaves out
the classes that have fewer, both from its training and from its score, and the result counts them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from lakeclip.errors import DataError
from lakeclip.evaluation.chance import Standing, compare_with_chance
from lakeclip.evaluation.registry import Evaluation, EvaluationData, EvaluationRows

#: Decades of 1/C at which the sweep starts, and its final step.
_DECADES = tuple(range(-6, 7, 2))
_FINAL_STEP = 1 / 8
_HELD_OUT = 0.2
_MAX_ITERATIONS = 1000
#: Random draws of the few-shot examples; their scores are averaged.
_NUM_DRAWS = 3


@dataclass(frozen=True)
class ProbeResult:
    """A linear classifier on frozen features.

    Attributes:
        top1: accuracy on the test images (0…1).
        chance: accuracy of always predicting the most frequent class of the test images.
        regularisation: 1/C of the classifier.
        sweep: (1/C, top-1 on the held-out training rows) for each strength tried, in ascending order.
        few: examples per class → top-1 of a classifier trained on that many, the mean over draws.
        num_train, num_test: numbers of images.
        num_classes: classes among the training images.
        few_left_out: examples per class → classes with fewer training images, which that classifier and its score leave
            out.
        num_single: classes with a single training image.
        num_unseen: test images of classes without a training image; they count as wrong.
    """

    top1: float
    chance: float
    regularisation: float
    sweep: tuple[tuple[float, float], ...]
    few: dict[int, float]
    num_train: int
    num_test: int
    num_classes: int
    few_left_out: dict[int, int] = field(default_factory=dict)
    num_single: int = 0
    num_unseen: int = 0

    @property
    def standing(self) -> Standing:
        """Top-1 compared with always predicting the most frequent class."""
        return compare_with_chance(self.top1, self.chance, self.num_test)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as written by `lakeclip evaluate probe --json`."""
        return {
            "top1": self.top1,
            "top1_interval_95": list(self.standing.interval),
            "chance": self.chance,
            "verdict": self.standing.verdict,
            "regularisation": self.regularisation,
            "sweep": [list(point) for point in self.sweep],
            "few_shot": {str(number): share for number, share in self.few.items()},
            "num_train": self.num_train,
            "num_test": self.num_test,
            "num_classes": self.num_classes,
            "few_shot_classes_left_out": {str(number): count for number, count in self.few_left_out.items()},
            "num_classes_with_one_image": self.num_single,
            "num_test_images_of_unseen_classes": self.num_unseen,
        }


def linear_probe(
    train_features: Float[Tensor, "train embed"],
    train_targets: Int64[Tensor, " train"],
    test_features: Float[Tensor, "test embed"],
    test_targets: Int64[Tensor, " test"],
    *,
    few: Sequence[int] = (),
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear classifier on training features, and score it on test features.

    Args:
        train_targets, test_targets: class indices.
        few: numbers of examples per class for few-shot classifiers, which use the strength that the sweep chose.
        seed: seed of the held-out part of the sweep and of the few-shot examples.

    Raises:
        DataError: fewer than two classes or ten images, one image of every class, or fewer than two classes with as
            many examples as `few` requests.
    """
    x, y = train_features.float().cpu().numpy(), train_targets.cpu().numpy()
    test_x, test_y = test_features.float().cpu().numpy(), test_targets.cpu().numpy()
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or len(x) < 10:
        raise DataError(
            "a linear probe needs at least ten images of at least two classes",
            found=f"{len(x)} images of {len(classes)} classes to train on",
        )
    if not len(test_x):
        raise DataError("a linear probe needs images to be scored on", found="0 test images")
    if few and np.sort(counts)[-2] < max(few):
        raise DataError(
            f"too few images for {max(few)} examples per class",
            found=f"{int((counts >= max(few)).sum())} classes with as many",
            allowed=f"at most {np.sort(counts)[-2]}, for two classes",
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(x))
    is_held = _hold_out(y[order], max(1, round(_HELD_OUT * len(x))))
    held_out, kept = order[is_held], order[~is_held]
    if not len(held_out):
        raise DataError(
            "a linear probe needs several images of some classes, to choose its regularisation on",
            found=f"{len(x)} training images of {len(classes)} classes",
            allowed="two images or more of a class",
        )
    accuracies: dict[float, float] = {}

    def accuracy(decade: float) -> float:
        if decade not in accuracies:
            accuracies[decade] = _fit(x[kept], y[kept], 10.0**decade).score(x[held_out], y[held_out])
        return accuracies[decade]

    best = float(max(_DECADES, key=accuracy))
    step = 1.0
    while step >= _FINAL_STEP:
        best = max((best - step, best, best + step), key=accuracy)
        step /= 2
    penalty = 10.0**best
    few_shot, few_left_out = {}, {}
    for number in few:
        scores = []
        enough = classes[counts >= number]
        is_scored = np.isin(test_y, enough) | ~np.isin(test_y, classes)
        few_left_out[number] = len(classes) - len(enough)
        for _ in range(_NUM_DRAWS):
            rows = np.concatenate(
                [generator.choice(np.flatnonzero(y == label), number, replace=False) for label in enough]
            )
            if is_scored.any():
                scores.append(_fit(x[rows], y[rows], penalty).score(test_x[is_scored], test_y[is_scored]))
        few_shot[number] = float(np.mean(scores)) if scores else math.nan
    return ProbeResult(
        top1=float(_fit(x, y, penalty).score(test_x, test_y)),
        chance=float(np.unique(test_y, return_counts=True)[1].max() / len(test_y)),
        regularisation=penalty,
        sweep=tuple((10.0**decade, float(accuracies[decade])) for decade in sorted(accuracies)),
        few=few_shot,
        num_train=len(x),
        num_test=len(test_x),
        num_classes=len(classes),
        few_left_out=few_left_out,
        num_single=int((counts == 1).sum()),
        num_unseen=int((~np.isin(test_y, classes)).sum()),
    )


def _hold_out(labels: NDArray[np.int64], num: int) -> NDArray[np.bool_]:
    """Choose the first `num` images to hold out, except for the last one of each class."""
    left = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    is_held = np.zeros(len(labels), np.bool_)
    for index, label in enumerate(labels):
        if num and left[label] > 1:
            is_held[index] = True
            left[label] -= 1
            num -= 1
    return is_held


def _fit(x: NDArray[np.float32], y: NDArray[np.int64], penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # A fit that has not converged after a thousand iterations is used as it is, as in the paper.
        warnings.simplefilter("ignore")
        return LogisticRegression(C=1 / penalty, max_iter=_MAX_ITERATIONS).fit(x, y)


def _check(rows: EvaluationRows) -> None:
    """Raise if half of the rows are too few to fit a probe on."""
    assert rows.labels is not None
    num_images, num_classes = len(rows.positions), len(set(rows.labels.targets))
    num_needed = max(20, 2 * num_classes)
    if num_images < num_needed:
        raise DataError(
            "a linear probe while training learns from half of the images, which are too few of each class",
            found=f"{num_images} images of {num_classes} classes",
            next_step=f"--eval-rows {num_needed} or more, or --eval-scores zeroshot",
        )


def _score(data: EvaluationData) -> dict[str, float]:
    """Fit a probe on a random half of the images, and score it on the other half."""
    assert data.targets is not None
    # The rows are in the order of the lake, which may be sorted by class.
    train, test = _halves(data.targets)
    result = linear_probe(data.features[train], data.targets[train], data.features[test], data.targets[test])
    return {"probe_top1": result.top1}


def _halves(targets: Int64[Tensor, " images"]) -> tuple[Tensor, Tensor]:
    """Split the images at random into two halves; each class with two images or more is in both of them."""
    order = from_numpy(np.random.default_rng(0).permutation(len(targets)))
    if set(targets[order[1::2]].tolist()) - set(targets[order[::2]].tolist()):
        order = order[targets[order].argsort(stable=True)]
    return order[::2], order[1::2]


EVALUATION = Evaluation(
    _score,
    about="Fit a linear classifier on half of the images, and score it on the other half.",
    needs=("labels",),
    check=_check,
    curves={"probe_top1": "linear probe, top-1"},
)
