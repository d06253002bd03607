"""Where a model puts images, as a map: t-SNE of their features (van der Maaten and Hinton 2008).

Images only. Images and texts lie in two cones of the shared space, apart from each other also where each image finds
its caption (Liang et al. 2022, "Mind the gap", arXiv 2203.02053). On one map they would be two islands, which looks
like a fault and is none; and with the gap taken out they would lie where the model does not compare them. What the
texts make of the images is told otherwise: a dot is filled where the class prompt nearest to the image is its own, and
a ring where it is another's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from lakeclip.evaluation.pages.charts import MAX_SERIES

#: So many images are a map that can be read, made in seconds.
MAX_IMAGES = 1000

#: With fewer, or fewer that differ, there are no neighbourhoods.
_FEWEST = 12
_PERPLEXITY = 30.0
_SEED = 0
#: Of a caption in a dot's title.
_LONGEST = 160


@dataclass(frozen=True)
class Dot:
    """An image on the map.

    Attributes:
        x, y: 0…1, from the left and from the top.
        series: colour of its class, from 1; 0 for a class without one, and where no classes are known.
        about: its class, what the model calls it, its caption.
        is_wrong: the model calls it something else. False where that is not known.
    """

    x: float
    y: float
    series: int
    about: str
    is_wrong: bool = False


@dataclass(frozen=True)
class Group:
    """A class with a colour of its own, and where most of it lies: the median of its dots."""

    name: str
    num_images: int
    series: int
    x: float
    y: float


@dataclass(frozen=True)
class EmbeddingMap:
    """Images by their features: those that the model holds to be alike lie side by side.

    Attributes:
        groups: the commonest classes, or none where no classes are known.
        num_other_classes: classes that share the grey.
        has_answers: whether dots know if the model is right.
        about: which images these are.
    """

    dots: tuple[Dot, ...]
    groups: tuple[Group, ...]
    num_other_classes: int
    has_answers: bool
    about: str


def embedding_map(
    features: Float[Tensor, "images embed"],
    captions: Sequence[Sequence[str]],
    *,
    labels: Sequence[str] | None = None,
    answers: Sequence[str] | None = None,
    about: str = "",
) -> EmbeddingMap | None:
    """Map images by t-SNE of their features: cosine distances, begun at the principal components.

    The same features give the same map.

    Args:
        features: of unit length.
        captions: of each image; the first is shown, where there is one.
        labels: class of each image, "" for none.
        answers: what the model calls each image, in the words of `labels`.
        about: which images these are.

    Returns:
        The map, or None where there are too few different images to have neighbourhoods.
    """
    points = features.detach().float().cpu().numpy()
    if len(np.unique(points.round(5), axis=0)) < _FEWEST:
        return None
    places = _places(points)
    shared = Counter(label for label in labels or () if label)
    # The commonest classes; of equals, the first by name.
    named = sorted(shared, key=lambda label: (-shared[label], label))[:MAX_SERIES]
    # The colours go by the name, so that another run's map has the same ones.
    series = {label: number for number, label in enumerate(sorted(named), start=1)}
    dots, groups = [], []
    for index, (x, y) in enumerate(places.tolist()):
        label, answer = (side[index] if side is not None else "" for side in (labels, answers))
        is_wrong = bool(label and answer and label != answer)
        words = [label and f"{label}{f', taken for {answer}' if is_wrong else ''}", *captions[index][:1]]
        text = " · ".join(word for word in words if word)
        about_it = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        dots.append(Dot(x, y, series.get(label, 0), about_it, is_wrong))
    for label, number in series.items():
        own = places[[index for index, other in enumerate(labels or ()) if other == label]]
        x, y = np.median(own, axis=0).tolist()
        groups.append(Group(label, shared[label], number, x, y))
    return EmbeddingMap(tuple(dots), tuple(groups), len(shared) - len(named), answers is not None, about)


def _places(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """(images, 2) between 0 and 1, to three decimals: the page has no finer ones."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=_SEED)
    # One thread: so few points give several nothing to do, and their sums come out in another order each time.
    with threadpool_limits(1):
        found = tsne.fit_transform(points).astype(np.float64)
    span = (found.max(axis=0) - found.min(axis=0)).max()
    # One scale for both sides, and in the middle of the shorter.
    middle = (found.max(axis=0) + found.min(axis=0)) / 2
    places: NDArray[np.float64] = ((found - middle) / span + 0.5).round(3)
    return places
