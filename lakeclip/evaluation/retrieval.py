"""Image-text retrieval metrics in both directions, with several captions per image and exact treatment of ties.

The rank of a query is the position of its first positive candidate when all candidates are sorted by similarity. Tied
candidates are in random order, and every metric is the expectation over that order: with g negatives strictly ahead,
and t negatives and m positives tied, the rank is 1 + g + t / (m + 1), and R@k is the probability that one of the m
positives is among the first k. A model that maps everything to one point therefore scores exactly chance.

Average precision is the mean, over the positives of a query, of the precision at the position of each; with a single
positive it is 1 / rank. Its expectation is exact, too (McSherry and Najork 2008): for n tied candidates, m of them
positive, behind s others, R of them positive, each positive contributes

    1/n · Σ_{j=1…n} (R + 1 + (j - 1) (m - 1) / (n - 1)) / (s + j),

because it is at position j of the n with equal probability, and the other m - 1 positives are uniformly distributed
over the other n - 1 positions.

Nothing is sorted: it suffices to count, for each positive, the candidates ahead of it and tied with it. This takes two
comparisons per tile of the similarity matrix, and each tile is computed once for both directions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lakeclip.errors import DataError
from lakeclip.evaluation.chance import Standing, compare_with_chance, recall_chance
from lakeclip.evaluation.encode import encode_texts
from lakeclip.evaluation.registry import Evaluation, EvaluationData, EvaluationRows

CUTOFFS = (1, 5, 10)
#: Largest k of the recall curve.
MAX_CURVE_K = 100

#: Similarities closer than this are tied: the same image encoded in two batches differs by float32 rounding.
TIE_TOLERANCE = 1e-6

#: Similarities per tile. On a CPU a tile should fit its cache, where comparing and counting is five times as fast as in
#: memory. With a quarter of that, threads on a busy machine wait for each other longer than they work.
_CPU_TILE = 1 << 20
_GPU_TILE = 1 << 26
#: Columns per row of a tile.
_ASPECT = 4
#: Positive pairs whose features are gathered at once.
_PAIRS_PER_BATCH = 4096


@dataclass(frozen=True)
class Ranking:
    """Retrieval metrics over all queries of one direction.

    Attributes:
        recall: k → share of queries (0…1) with a positive among the first k candidates.
        median_rank: 1 is best.
        mean_average_precision: 0…1; if each query has one positive, the mean reciprocal rank.
        curve: the recall for every k from 1 to `MAX_CURVE_K`, for plots.
        chance: k → expected recall of guessing; 1 if there are no more than k candidates.
        num_queries: number of queries.
    """

    recall: dict[int, float]
    median_rank: float
    mean_average_precision: float
    curve: tuple[float, ...] = field(default=(), compare=False, repr=False)
    chance: dict[int, float] = field(default_factory=dict, compare=False, repr=False)
    num_queries: int = field(default=0, compare=False, repr=False)

    def standing(self, k: int = 1) -> Standing:
        """Compare R@k with guessing."""
        return compare_with_chance(self.recall[k], self.chance.get(k, 0.0), max(1, self.num_queries))

    def to_json(self) -> dict[str, float]:
        """Return `{"R@1": …, "R@5": …, "R@10": …, "median_rank": …, "mAP": …}`."""
        recall = {f"R@{k}": share for k, share in self.recall.items()}
        return {**recall, "median_rank": self.median_rank, "mAP": self.mean_average_precision}


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval among `num_images` images and `num_texts` captions, in both directions.

    Attributes:
        num_undecodable: images left out because they could not be decoded.
    """

    image_to_text: Ranking
    text_to_image: Ranking
    num_images: int
    num_texts: int
    num_undecodable: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as written by `lakeclip evaluate retrieval --json`."""
        return {
            "image_to_text": self.image_to_text.to_json(),
            "text_to_image": self.text_to_image.to_json(),
            "num_images": self.num_images,
            "num_texts": self.num_texts,
            "chance": {
                name: {f"R@{k}": share for k, share in ranking.chance.items()}
                for name, ranking in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image))
            },
            "verdict": {
                "image_to_text_R@1": self.image_to_text.standing().verdict,
                "text_to_image_R@1": self.text_to_image.standing().verdict,
            },
        }


class _Counts(NamedTuple):
    """For each pair of a caption and its image: candidates with a higher similarity, and tied candidates."""

    ahead: Int64[Tensor, " texts"]
    tied: Int64[Tensor, " texts"]


class _PositiveRanks(NamedTuple):
    """For each positive of a query, as float64: negatives and positives ahead of it and tied with it.

    `positives_tied` includes the positive itself.
    """

    negatives_ahead: Tensor
    negatives_tied: Tensor
    positives_ahead: Tensor
    positives_tied: Tensor

    def select(self, index: Tensor) -> _PositiveRanks:
        """Select positives by index or mask."""
        return _PositiveRanks(*(column[index] for column in self))


def retrieval_metrics(
    image_features: Float[Tensor, "images embed"],
    text_features: Float[Tensor, "texts embed"],
    image_index_of_text: Int64[Tensor, " texts"],
    *,
    tile: int | None = None,
) -> RetrievalResult:
    """Score retrieval in both directions, on the features' device, a tile of the similarity matrix at a time.

    Args:
        image_features: of unit length. An image without captions is a candidate but not a query.
        text_features: of unit length. Non-finite rows (diverged training) count as equally similar to all images.
        image_index_of_text: for each caption, the row of its image.
        tile: number of similarities in memory at once; by default it depends on the device.

    Raises:
        ValueError: there are no captions, or the indices do not match the features.
    """
    num_images, num_texts = len(image_features), len(text_features)
    if num_texts == 0 or len(image_index_of_text) != num_texts:
        raise ValueError(f"{num_texts} texts and {len(image_index_of_text)} image indices")
    if int(image_index_of_text.min()) < 0 or int(image_index_of_text.max()) >= num_images:
        raise ValueError(f"image_index_of_text must be in 0…{num_images - 1}")
    images, texts = _finite(image_features), _finite(text_features)
    image_of_text = image_index_of_text.to(texts.device)
    # With the captions sorted by image, the positives of consecutive images are one range of columns.
    if bool((image_of_text[1:] < image_of_text[:-1]).any()):
        image_of_text, order = torch.sort(image_of_text, stable=True)
        texts = texts[order]
    tile = tile or (_CPU_TILE if texts.device.type == "cpu" else _GPU_TILE)
    with torch.no_grad(), _full_precision(texts.device):
        similarity = _positive_similarities(images, texts, image_of_text)
        image_counts, text_counts = _count(images, texts, image_of_text, similarity, tile)
    image_of_text, similarity = image_of_text.cpu(), similarity.cpu()
    ahead, tied, best = _rank_positives(image_of_text, similarity)
    by_image = _positive_ranks(image_counts, ahead, tied)
    by_text = _positive_ranks(text_counts, torch.zeros_like(ahead), torch.ones_like(tied))
    num_captions = torch.bincount(image_of_text)
    precision = torch.bincount(image_of_text, _average_precision(by_image)) / num_captions.clamp(min=1)
    captions_of_query = num_captions[num_captions > 0]
    return RetrievalResult(
        image_to_text=_ranking(
            by_image.select(best), precision[image_of_text[best]], _mean_chance(captions_of_query, num_texts)
        ),
        text_to_image=_ranking(
            by_text, _average_precision(by_text), {k: recall_chance(k, num_images) for k in CUTOFFS}
        ),
        num_images=num_images,
        num_texts=num_texts,
    )


def _mean_chance(num_positives: Tensor, num_candidates: int) -> dict[int, float]:
    """Return the expected R@k of guessing, the mean over queries with these numbers of positives."""
    groups = Counter(num_positives.tolist()).items()
    return {
        k: sum(count * recall_chance(k, num_candidates, number) for number, count in groups) / len(num_positives)
        for k in CUTOFFS
    }


def _finite(features: Tensor) -> Tensor:
    features = features.detach().float()
    is_finite = features.isfinite().all(dim=1, keepdim=True)
    return features if bool(is_finite.all()) else torch.where(is_finite, features, torch.zeros_like(features))


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute in full float32 precision, whatever training has set: ties depend on the last digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _positive_similarities(images: Tensor, texts: Tensor, image_of_text: Tensor) -> Tensor:
    """Compute (texts,): the similarity of each caption with its image."""
    parts = [slice(start, start + _PAIRS_PER_BATCH) for start in range(0, len(texts), _PAIRS_PER_BATCH)]
    return torch.cat([(texts[part] * images[image_of_text[part]]).sum(dim=1) for part in parts])


def _count(
    images: Tensor, texts: Tensor, image_of_text: Tensor, positive: Tensor, tile: int
) -> tuple[_Counts, _Counts]:
    """Count the candidates ahead of and tied with each positive pair: among all captions, and among all images."""
    width = min(len(texts), max(1, math.isqrt(tile * _ASPECT)))
    height = max(1, tile // width)
    starts = torch.searchsorted(image_of_text, torch.arange(len(images) + 1, device=image_of_text.device)).tolist()
    above, below = positive + TIE_TOLERANCE, positive - TIE_TOLERANCE
    # Until the end of the loop `tied` includes the candidates ahead.
    image_counts, text_counts = (
        _Counts(torch.zeros_like(image_of_text), torch.zeros_like(image_of_text)) for _ in range(2)
    )
    # Sums of float comparisons are faster than sums of booleans.
    buffer = torch.empty(height * width, device=texts.device)
    for a in range(0, len(images), height):
        b = min(a + height, len(images))
        for c in range(0, len(texts), width):
            columns = slice(c, min(c + width, len(texts)))
            similarity = images[a:b] @ texts[columns].T
            scratch = buffer[: similarity.numel()].view_as(similarity)
            text_counts.ahead[columns] += torch.gt(similarity, above[columns], out=scratch).sum(dim=0).long()
            text_counts.tied[columns] += torch.ge(similarity, below[columns], out=scratch).sum(dim=0).long()
            # Each caption of an image is compared with the image's row.
            for d in range(starts[a], starts[b], height):
                pairs = slice(d, min(d + height, starts[b]))
                rows = similarity[image_of_text[pairs] - a]
                scratch = buffer[: rows.numel()].view_as(rows)
                image_counts.ahead[pairs] += torch.gt(rows, above[pairs, None], out=scratch).sum(dim=1).long()
                image_counts.tied[pairs] += torch.ge(rows, below[pairs, None], out=scratch).sum(dim=1).long()
    for counts in (image_counts, text_counts):
        counts.tied.sub_(counts.ahead)
    return image_counts, text_counts


def _rank_positives(image_of_text: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rank each caption among the captions of its image.

    Returns:
        (texts,) captions ahead; (texts,) captions tied, including itself; and the index of each image's best caption.
    """
    # One key encodes image and similarity, so that a single sort ranks the captions of all images.
    spacing = 4 * (1 + float(similarity.abs().max()))
    image, key = image_of_text * spacing, image_of_text * spacing - similarity.double()
    ordered, order = key.sort(stable=True)
    first = torch.searchsorted(ordered, image - spacing / 2)
    ahead = torch.searchsorted(ordered, key - TIE_TOLERANCE) - first
    tied = torch.searchsorted(ordered, key + TIE_TOLERANCE, right=True) - first - ahead
    return ahead, tied, order[torch.unique(first)]


def _positive_ranks(counts: _Counts, positives_ahead: Tensor, positives_tied: Tensor) -> _PositiveRanks:
    # Rounding may differ between the tiles and the positive pairs, so a difference can be negative.
    negatives_ahead = (counts.ahead.cpu() - positives_ahead).clamp(min=0)
    negatives_tied = (counts.tied.cpu() - positives_tied).clamp(min=0)
    columns = (negatives_ahead, negatives_tied, positives_ahead, positives_tied)
    return _PositiveRanks(*(column.double() for column in columns))


def _average_precision(ranks: _PositiveRanks) -> Tensor:
    """Compute the contribution of each positive, by the formula in the docstring of this module."""
    negatives_ahead, negatives_tied, positives_ahead, positives_tied = ranks
    ahead, tied = negatives_ahead + positives_ahead, negatives_tied + positives_tied
    # The sum of 1 / (s + j); the sum of (j - 1) / (s + j) follows from it.
    inverse = torch.digamma(ahead + tied + 1) - torch.digamma(ahead + 1)
    inverse = torch.where(tied == 1, 1 / (ahead + 1), inverse)
    others = (positives_tied - 1) / (tied - 1).clamp(min=1) * (tied - (ahead + 1) * inverse)
    return ((positives_ahead + 1) * inverse + others) / tied


def _ranking(best: _PositiveRanks, precision: Tensor, chance: dict[int, float]) -> Ranking:
    """Compute all metrics from the best positive of each query and the query's average precision."""
    rank = 1 + best.negatives_ahead + best.negatives_tied / (best.positives_tied + 1)
    # torch.quantile rejects long inputs, and torch.median returns the lower of two middle values.
    ordered = rank.sort().values
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    curve = _curve(best)
    recall = {k: curve[k - 1] for k in CUTOFFS}
    return Ranking(recall, float(middle), float(precision.mean()), tuple(curve), chance, len(rank))


def _curve(best: _PositiveRanks) -> list[float]:
    """Compute R@1 to R@`MAX_CURVE_K`."""
    hits = torch.zeros(MAX_CURVE_K + 1, dtype=torch.float64)
    near = best.select(best.negatives_ahead < MAX_CURVE_K)
    ahead = near.negatives_ahead.long()
    miss = torch.ones_like(near.negatives_ahead)
    for offset in range(MAX_CURVE_K):
        # Probability that the next tied position is a negative, too.
        remaining = near.negatives_tied - offset
        miss = miss * remaining.clamp(min=0) / (remaining + near.positives_tied).clamp(min=1)
        reached = (ahead + offset + 1).clamp(max=MAX_CURVE_K + 1)
        hits += torch.bincount(reached, 1 - miss, minlength=MAX_CURVE_K + 2)[:-1]
    share: list[float] = (hits[1:] / len(best.negatives_ahead)).tolist()
    return share


def _check(rows: EvaluationRows) -> None:
    """Raise if the rows have no captions."""
    if not any(row.captions for row in rows.source.read(rows.positions[:1])):
        raise DataError(f"{rows.source.path} has no captions to retrieve", next_step="--eval-scores without retrieval")


def _score(data: EvaluationData) -> dict[str, float]:
    """Score retrieval in both directions among the encoded images and their captions."""
    texts = [text for captions in data.captions for text in captions]
    image_of_text = torch.tensor([image for image, captions in enumerate(data.captions) for _ in captions])
    result = retrieval_metrics(data.features, encode_texts(data.model, data.tokenize, texts).cpu(), image_of_text)
    rankings = {"image_to_text": result.image_to_text, "text_to_image": result.text_to_image}
    return {
        f"{direction}_R@{k}": share for direction, ranking in rankings.items() for k, share in ranking.recall.items()
    }


EVALUATION = Evaluation(
    _score,
    about="Retrieve each image's captions, and each caption's image.",
    needs=("captions",),
    check=_check,
    curves={"image_to_text_R@1": "image → text, R@1", "text_to_image_R@1": "text → image, R@1"},
)
