"""Map of images: t-SNE of their features (van der Maaten and Hinton 2008).

The map has no texts. Image and text features lie in two separate cones, even if every image retrieves its caption
(Liang et al. 2022, "Mind the gap", arXiv 2203.02053), so a joint map would show two islands. Instead, the style of a
dot shows the nearest class prompt: filled if it is correct, a ring if it is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lakeclip.report.charts import MAX_SERIES

#: A map of this many images is readable and takes seconds.
MAX_IMAGES = 1000

#: With fewer distinct images there are no neighbourhoods.
_MIN_IMAGES = 12
_PERPLEXITY = 30.0
_SEED = 0
#: Characters in the title of a dot.
_MAX_TITLE = 160


@dataclass(frozen=True)
class Dot:
    """An image on the map.

    Attributes:
        x, y: 0…1, from the left and from the top.
        series: number of its colour, from 1; 0 without a class or without a colour for the class.
        about: class, prediction if wrong, and caption.
        is_wrong: True if the prediction is wrong, False if it is correct or unknown.
    """

    x: float
    y: float
    series: int
    about: str
    is_wrong: bool = False


@dataclass(frozen=True)
class Group:
    """A class with its own colour; x and y are the medians of its dots."""

    name: str
    num_images: int
    series: int
    x: float
    y: float


@dataclass(frozen=True)
class EmbeddingMap:
    """Map of images, in which images with similar features are close to each other.

    Attributes:
        groups: the most common classes; empty without classes.
        num_other_classes: number of classes drawn in grey.
        has_predictions: True if wrong predictions are marked.
        about: description of the images.
    """

    dots: tuple[Dot, ...]
    groups: tuple[Group, ...]
    num_other_classes: int
    has_predictions: bool
    about: str


def embedding_map(
    features: Float[Tensor, "images embed"],
    captions: Sequence[Sequence[str]],
    *,
    labels: Sequence[str] | None = None,
    predictions: Sequence[str] | None = None,
    about: str = "",
) -> EmbeddingMap | None:
    """Map images with t-SNE of their features, with cosine distances and PCA initialization.

    The map is deterministic.

    Args:
        features: of unit length.
        captions: captions of each image; the first one is shown.
        labels: class of each image, "" for none.
        predictions: predicted class of each image.
        about: description of the images.

    Returns:
        The map, or None if there are too few distinct images.
    """
    points = features.detach().float().cpu().numpy()
    if len(np.unique(points.round(5), axis=0)) < _MIN_IMAGES:
        return None
    coordinates = _project(points)
    counts = Counter(label for label in labels or () if label)
    # The most common classes; ties are broken by name.
    common = sorted(counts, key=lambda label: (-counts[label], label))[:MAX_SERIES]
    # Colours follow the alphabetical order, so that the maps of several runs agree.
    series = {label: number for number, label in enumerate(sorted(common), start=1)}
    dots, groups = [], []
    for index, (x, y) in enumerate(coordinates.tolist()):
        label, prediction = (names[index] if names is not None else "" for names in (labels, predictions))
        is_wrong = bool(label and prediction and label != prediction)
        parts = [label and f"{label}{f', predicted as {prediction}' if is_wrong else ''}", *captions[index][:1]]
        text = " · ".join(part for part in parts if part)
        title = text if len(text) <= _MAX_TITLE else f"{text[:_MAX_TITLE]}…"
        dots.append(Dot(x, y, series.get(label, 0), title, is_wrong))
    for label, number in series.items():
        members = coordinates[[index for index, other in enumerate(labels or ()) if other == label]]
        x, y = np.median(members, axis=0).tolist()
        groups.append(Group(label, counts[label], number, x, y))
    return EmbeddingMap(tuple(dots), tuple(groups), len(counts) - len(common), predictions is not None, about)


def _project(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Project features to (images, 2) coordinates between 0 and 1, rounded to the page's three decimals."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=_SEED)
    # With several threads the order of the sums, and so the map, would vary between calls.
    with threadpool_limits(1):
        embedded = tsne.fit_transform(points).astype(np.float64)
    low, high = embedded.min(axis=0), embedded.max(axis=0)
    # The same scale for both axes; the shorter one is centred.
    coordinates: NDArray[np.float64] = ((embedded - (high + low) / 2) / (high - low).max() + 0.5).round(3)
    return coordinates
