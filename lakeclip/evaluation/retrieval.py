"""Retrieval both ways: features in, numbers out, with several captions an image and any number of equal images.

The rank of a query is the place of the first right candidate when all are sorted by similarity. Candidates that tie
with it stand in random order, and every number here is the expectation over that order: with g wrong candidates
strictly ahead, and t wrong and m right ones level, the rank is 1 + g + t / (m + 1), and R@k is the chance that one of
the m stands among the first k. So a model that maps everything to one point scores exactly chance.

Average precision is the mean, over the right candidates of a query, of the share of right ones among all up to and
with it; where there is one, it is 1 / rank. Its expectation is exact, too (McSherry and Najork 2008): of n level
candidates, m of them right, behind s others, R of them right, each right one contributes

    1/n · Σ_{j=1…n} (R + 1 + (j - 1) (m - 1) / (n - 1)) / (s + j),

for it stands at place j of the n with equal chance, and the other m - 1 right ones are anywhere on the n - 1 others.

Nothing is sorted: all that is needed of a right candidate is how many are ahead of it and how many level. Those are two
comparisons of a tile of similarities, and each tile is computed once for both directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CUTOFFS = (1, 5, 10)
#: How far the recall curve goes.
LONGEST_CURVE = 100

#: Similarities this close are level: the same picture encoded in two batches differs by the rounding of float32.
LEVEL = 1e-6

#: Similarities held at once. On a CPU about as many as its cache holds: comparing and counting them goes five times as
#: fast there as in memory. With a quarter of that, threads on a busy machine wait for each other longer than they work.
_TILE = 1 << 20
_TILE_ON_A_GPU = 1 << 26
#: Columns of a tile for each row.
_ASPECT = 4
#: Right pairs whose features are held beside each other.
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class Ranking:
    """How high the right candidates stand, over all queries of one direction.

    Attributes:
        recall: k → share of queries (0…1) with a right candidate among the first k.
        median_rank: 1 is best.
        mean_average_precision: 0…1; where each query has one right candidate, the mean reciprocal rank.
        curve: the share for every k from 1 to `LONGEST_CURVE`, to be drawn.
    """

    recall: dict[int, float]
    median_rank: float
    mean_average_precision: float
    curve: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> dict[str, float]:
        """`{"R@1": …, "R@5": …, "R@10": …, "median_rank": …, "mAP": …}`."""
        recall = {f"R@{k}": share for k, share in self.recall.items()}
        return {**recall, "median_rank": self.median_rank, "mAP": self.mean_average_precision}


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval among `num_images` images and `num_texts` captions."""

    image_to_text: Ranking
    text_to_image: Ranking
    num_images: int
    num_texts: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, as written by `lakeclip evaluate retrieval --json`."""
        return {
            "image_to_text": self.image_to_text.to_json(),
            "text_to_image": self.text_to_image.to_json(),
            "num_images": self.num_images,
            "num_texts": self.num_texts,
        }


class _Counts(NamedTuple):
    """For each caption and its image: how many candidates are ahead of the right one, and how many level with it."""

    ahead: Int64[Tensor, " texts"]
    level: Int64[Tensor, " texts"]


class _Standings(NamedTuple):
    """For each right candidate of a query, as float64: those ahead of it and level with it, wrong and right.

    `right_level` counts the candidate itself.
    """

    wrong_ahead: Tensor
    wrong_level: Tensor
    right_ahead: Tensor
    right_level: Tensor

    def of(self, which: Tensor) -> _Standings:
        """Some of them."""
        return _Standings(*(column[which] for column in self))


def retrieval_metrics(
    image_features: Float[Tensor, "images embed"],
    text_features: Float[Tensor, "texts embed"],
    image_index_of_text: Int64[Tensor, " texts"],
    *,
    tile: int | None = None,
) -> RetrievalResult:
    """Score retrieval in both directions, on the features' device, a tile of the similarity matrix at a time.

    Args:
        image_features: of unit length. An image without captions is a candidate but no query.
        text_features: of unit length. Rows that are not finite (training diverged) count as equally similar to all.
        image_index_of_text: for each caption, the row of its image.
        tile: how many similarities to hold at once; by default, what suits the device.

    Raises:
        ValueError: no captions, or the indices do not fit.
    """
    num_images, num_texts = len(image_features), len(text_features)
    if num_texts == 0 or len(image_index_of_text) != num_texts:
        raise ValueError(f"{num_texts} texts and {len(image_index_of_text)} image indices")
    if int(image_index_of_text.min()) < 0 or int(image_index_of_text.max()) >= num_images:
        raise ValueError(f"image_index_of_text must lie in 0…{num_images - 1}")
    images, texts = _finite(image_features), _finite(text_features)
    owners = image_index_of_text.to(texts.device)
    # With an image's captions side by side, the right candidates of a strip of images are one range of columns.
    if bool((owners[1:] < owners[:-1]).any()):
        owners, order = torch.sort(owners, stable=True)
        texts = texts[order]
    tile = tile or (_TILE if texts.device.type == "cpu" else _TILE_ON_A_GPU)
    with torch.no_grad(), _full_precision(texts.device):
        right = _right_similarities(images, texts, owners)
        of_images, of_texts = _count(images, texts, owners, right, tile)
    owners, right = owners.cpu(), right.cpu()
    right_ahead, right_level, best = _among_the_right(owners, right)
    by_image = _standings(of_images, right_ahead, right_level)
    by_text = _standings(of_texts, torch.zeros_like(right_ahead), torch.ones_like(right_level))
    precision = torch.bincount(owners, _average_precision(by_image)) / torch.bincount(owners).clamp(min=1)
    return RetrievalResult(
        image_to_text=_ranking(by_image.of(best), precision[owners[best]]),
        text_to_image=_ranking(by_text, _average_precision(by_text)),
        num_images=num_images,
        num_texts=num_texts,
    )


def _finite(features: Tensor) -> Tensor:
    features = features.detach().float()
    is_finite = features.isfinite().all(dim=1, keepdim=True)
    return features if bool(is_finite.all()) else torch.where(is_finite, features, torch.zeros_like(features))


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """What is level is told by the last digits of float32: they must be computed, whatever a training run has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _right_similarities(images: Tensor, texts: Tensor, owners: Tensor) -> Tensor:
    """(texts,): of each caption with its image."""
    parts = [slice(start, start + _PAIRS_AT_ONCE) for start in range(0, len(texts), _PAIRS_AT_ONCE)]
    return torch.cat([(texts[part] * images[owners[part]]).sum(dim=1) for part in parts])


def _count(images: Tensor, texts: Tensor, owners: Tensor, right: Tensor, tile: int) -> tuple[_Counts, _Counts]:
    """Among all captions, as the image sees them; and among all images, as the caption does."""
    width = min(len(texts), max(1, math.isqrt(tile * _ASPECT)))
    height = max(1, tile // width)
    starts = torch.searchsorted(owners, torch.arange(len(images) + 1, device=owners.device)).tolist()
    above, below = right + LEVEL, right - LEVEL
    # At least this high is for now what `level` holds: what is ahead is taken off in the end.
    of_images, of_texts = (_Counts(torch.zeros_like(owners), torch.zeros_like(owners)) for _ in range(2))
    # Comparisons that give floats are summed fast; those that give booleans are not.
    buffer = torch.empty(height * width, device=texts.device)
    for a in range(0, len(images), height):
        b = min(a + height, len(images))
        for c in range(0, len(texts), width):
            columns = slice(c, min(c + width, len(texts)))
            similarity = images[a:b] @ texts[columns].T
            scratch = buffer[: similarity.numel()].view_as(similarity)
            of_texts.ahead[columns] += torch.gt(similarity, above[columns], out=scratch).sum(dim=0).long()
            of_texts.level[columns] += torch.ge(similarity, below[columns], out=scratch).sum(dim=0).long()
            # An image is compared as often as it has captions.
            for d in range(starts[a], starts[b], height):
                pairs = slice(d, min(d + height, starts[b]))
                rows = similarity[owners[pairs] - a]
                scratch = buffer[: rows.numel()].view_as(rows)
                of_images.ahead[pairs] += torch.gt(rows, above[pairs, None], out=scratch).sum(dim=1).long()
                of_images.level[pairs] += torch.ge(rows, below[pairs, None], out=scratch).sum(dim=1).long()
    for counts in (of_images, of_texts):
        counts.level.sub_(counts.ahead)
    return of_images, of_texts


def _among_the_right(owners: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each caption, how many of its image's are ahead of it, and how many level, itself included; and which of each
    image's is the best."""
    # One number tells image and similarity, so that one sorted list answers for all images.
    apart = 4 * (1 + float(right.abs().max()))
    image, place = owners * apart, owners * apart - right.double()
    ordered, order = place.sort(stable=True)
    first = torch.searchsorted(ordered, image - apart / 2)
    ahead = torch.searchsorted(ordered, place - LEVEL) - first
    level = torch.searchsorted(ordered, place + LEVEL, right=True) - first - ahead
    return ahead, level, order[torch.unique(first)]


def _standings(counts: _Counts, right_ahead: Tensor, right_level: Tensor) -> _Standings:
    # A right one may be a rounding away from where it was first seen.
    wrong_ahead = (counts.ahead.cpu() - right_ahead).clamp(min=0)
    wrong_level = (counts.level.cpu() - right_level).clamp(min=0)
    return _Standings(*(column.double() for column in (wrong_ahead, wrong_level, right_ahead, right_level)))


def _average_precision(standings: _Standings) -> Tensor:
    """What each right candidate contributes: the formula at the head of this module."""
    wrong_ahead, wrong_level, right_ahead, right_level = standings
    before, level = wrong_ahead + right_ahead, wrong_level + right_level
    # The sum of 1 / (s + j); and with it, that of (j - 1) / (s + j).
    inverse = torch.digamma(before + level + 1) - torch.digamma(before + 1)
    inverse = torch.where(level == 1, 1 / (before + 1), inverse)
    others = (right_level - 1) / (level - 1).clamp(min=1) * (level - (before + 1) * inverse)
    return ((right_ahead + 1) * inverse + others) / level


def _ranking(best: _Standings, precision: Tensor) -> Ranking:
    """All figures, of the best right candidate of each query and the query's average precision."""
    rank = 1 + best.wrong_ahead + best.wrong_level / (best.right_level + 1)
    # quantile() refuses long inputs, and median() takes the lower of two.
    ordered = rank.sort().values
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    curve = _curve(best)
    recall = {k: curve[k - 1] for k in CUTOFFS}
    return Ranking(recall, float(middle), float(precision.mean()), tuple(curve))


def _curve(best: _Standings) -> list[float]:
    """R@1 to R@`LONGEST_CURVE`."""
    hits = torch.zeros(LONGEST_CURVE + 1, dtype=torch.float64)
    near = best.of(best.wrong_ahead < LONGEST_CURVE)
    ahead = near.wrong_ahead.long()
    miss = torch.ones_like(near.wrong_ahead)
    for place in range(LONGEST_CURVE):
        # The chance that the next place among the level ones is taken by a wrong one too.
        remaining = near.wrong_level - place
        miss = miss * remaining.clamp(min=0) / (remaining + near.right_level).clamp(min=1)
        reached = (ahead + place + 1).clamp(max=LONGEST_CURVE + 1)
        hits += torch.bincount(reached, 1 - miss, minlength=LONGEST_CURVE + 2)[:-1]
    share: list[float] = (hits[1:] / len(best.wrong_ahead)).tolist()
    return share
