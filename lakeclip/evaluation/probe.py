"""Linear probes: how much of a label a straight line through the image features tells (Radford et al. 2021, 3.2).

A logistic regression by L-BFGS (scikit-learn), at most 1,000 iterations. The strength of its L2 penalty is chosen on a
part of the training rows: seven from 1e-6 to 1e6 first, then by halves of the interval around the best, down to an
eighth of a decade (the paper's appendix A.3).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from lakeclip.errors import DataError

#: Decades of 1/C that the sweep begins with, and how fine it ends.
_DECADES = tuple(range(-6, 7, 2))
_FINEST = 1 / 8
_HELD_OUT = 0.2
_MOST_ITERATIONS = 1000
#: Draws of the few examples, whose scores are averaged.
_DRAWS = 3


@dataclass(frozen=True)
class ProbeResult:
    """A linear classifier on frozen features.

    Attributes:
        top1: share of the test images (0…1) that it names right.
        chance: what the most frequent class of the test images would get.
        regularisation: 1/C of the classifier.
        sweep: (1/C, top-1 on the held-out part of the training rows) of each strength tried, in order.
        few: examples a class → top-1 of a classifier trained on so many, the mean over draws.
        num_train, num_test: images.
        num_classes: labels among the training images.
    """

    top1: float
    chance: float
    regularisation: float
    sweep: tuple[tuple[float, float], ...]
    few: dict[int, float]
    num_train: int
    num_test: int
    num_classes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written by `lakeclip evaluate probe --json`."""
        return {
            "top1": self.top1,
            "chance": self.chance,
            "regularisation": self.regularisation,
            "sweep": [list(point) for point in self.sweep],
            "few_shot": {str(number): share for number, share in self.few.items()},
            "num_train": self.num_train,
            "num_test": self.num_test,
            "num_classes": self.num_classes,
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
    """Fit a classifier on some features, and score it on others.

    Args:
        train_targets, test_targets: numbers of classes.
        few: numbers of examples a class for few-shot classifiers, each with the strength that the sweep found.
        seed: of the part held out for the sweep, and of the few examples.

    Raises:
        DataError: fewer than two classes, too few images, or fewer examples of a class than were asked for.
    """
    x, y = train_features.float().cpu().numpy(), train_targets.cpu().numpy()
    test_x, test_y = test_features.float().cpu().numpy(), test_targets.cpu().numpy()
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or len(x) < 10:
        raise DataError(
            "a linear probe needs images of two classes at least, and ten of them",
            found=f"{len(x)} images of {len(classes)} classes to train on",
        )
    if few and counts.min() < max(few):
        raise DataError(
            f"{max(few)} examples of each class are asked for",
            found=f"a class with {counts.min()}",
            allowed=f"at most {counts.min()}",
        )
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(x))
    held_out, kept = np.split(order, [max(1, round(_HELD_OUT * len(x)))])
    tried: dict[float, float] = {}

    def accuracy(decade: float) -> float:
        if decade not in tried:
            tried[decade] = _fit(x[kept], y[kept], 10.0**decade).score(x[held_out], y[held_out])
        return tried[decade]

    best = float(max(_DECADES, key=accuracy))
    step = 1.0
    while step >= _FINEST:
        best = max((best - step, best, best + step), key=accuracy)
        step /= 2
    chosen = 10.0**best
    shots = {}
    for number in few:
        scores = []
        for _ in range(_DRAWS):
            rows = np.concatenate(
                [generator.choice(np.flatnonzero(y == one), number, replace=False) for one in classes]
            )
            scores.append(_fit(x[rows], y[rows], chosen).score(test_x, test_y))
        shots[number] = float(np.mean(scores))
    return ProbeResult(
        top1=float(_fit(x, y, chosen).score(test_x, test_y)),
        chance=float(np.unique(test_y, return_counts=True)[1].max() / len(test_y)),
        regularisation=chosen,
        sweep=tuple((10.0**decade, float(tried[decade])) for decade in sorted(tried)),
        few=shots,
        num_train=len(x),
        num_test=len(test_x),
        num_classes=len(classes),
    )


def _fit(x: NDArray[np.float32], y: NDArray[np.int64], penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # One that has not come to its end in a thousand iterations counts as it is, as in the paper.
        warnings.simplefilter("ignore")
        return LogisticRegression(C=1 / penalty, max_iter=_MOST_ITERATIONS).fit(x, y)
