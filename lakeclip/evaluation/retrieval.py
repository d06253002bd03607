"""Retrieval both ways: features in, numbers out, with several captions an image and any number of equal images.

The rank of a query is the place of the first right candidate when all are sorted by similarity. Candidates that tie
with it stand in random order, and every number here is the expectation over that order: with g wrong candidates
strictly ahead, and t wrong and m right ones level, the rank is 1 + g + t / (m + 1), and R@k is the chance that one of
the m stands among the first k. So a model that maps everything to one point scores exactly chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CUTOFFS = (1, 5, 10)

#: Similarities this close are level: the same picture encoded in two batches differs by the rounding of float32.
LEVEL = 1e-6

#: Similarities held at once: 64 MB of them.
_TILE = 1 << 24


@dataclass(frozen=True)
class Ranking:
    """How high the right candidates stand, over all queries of one direction.

    Attributes:
        recall: k → share of queries (0…1) with a right candidate among the first k.
        median_rank: 1 is best.
    """

    recall: dict[int, float]
    median_rank: float

    def to_json(self) -> dict[str, float]:
        """`{"R@1": …, "R@5": …, "R@10": …, "median_rank": …}`."""
        return {**{f"R@{k}": share for k, share in self.recall.items()}, "median_rank": self.median_rank}


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


def retrieval_metrics(
    image_features: Float[Tensor, "images embed"],
    text_features: Float[Tensor, "texts embed"],
    image_index_of_text: Int64[Tensor, " texts"],
    *,
    tile: int = _TILE,
) -> RetrievalResult:
    """Score retrieval in both directions, on the features' device, a strip of the similarity matrix at a time.

    Args:
        image_features: of unit length. An image without captions is a candidate but no query.
        text_features: of unit length. Rows that are not finite (training diverged) count as equally similar to all.
        image_index_of_text: for each caption, the row of its image.
        tile: how many similarities to hold at once.

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
    owners, order = torch.sort(owners, stable=True)
    texts = texts[order]
    starts = torch.searchsorted(owners, torch.arange(num_images + 1, device=owners.device))
    step = max(1, tile // num_texts)
    by_image = [
        _strip_of_images(images[a : a + step], texts, owners - a, starts[a : a + step + 1].tolist())
        for a in range(0, num_images, step)
    ]
    step = max(1, tile // num_images)
    by_text = [_strip_of_texts(texts[a : a + step], images, owners[a : a + step]) for a in range(0, num_texts, step)]
    return RetrievalResult(_rank(torch.cat(by_image)), _rank(torch.cat(by_text)), num_images, num_texts)


def _finite(features: Tensor) -> Tensor:
    features = features.detach().float()
    return torch.where(features.isfinite().all(dim=1, keepdim=True), features, torch.zeros_like(features))


def _strip_of_images(images: Tensor, texts: Tensor, owners: Tensor, starts: list[int]) -> Tensor:
    """Standings, (queries, 3), of the images of a strip that have captions; `owners` counts from the strip's first."""
    similarity = images @ texts.T
    columns = torch.arange(starts[0], starts[-1], device=texts.device)
    rows = owners[starts[0] : starts[-1]]
    right = similarity[rows, columns]
    best = similarity.new_full((len(images),), -torch.inf).scatter_reduce(0, rows, right, "amax")
    num_right = similarity.new_zeros(len(images)).scatter_add(0, rows, (right >= best[rows] - LEVEL).to(right.dtype))
    return _standings(similarity, best, num_right)[num_right > 0]


def _strip_of_texts(texts: Tensor, images: Tensor, owners: Tensor) -> Tensor:
    """Standings, (queries, 3), of the captions of a strip: each has one right image."""
    similarity = texts @ images.T
    best = similarity.gather(1, owners[:, None])[:, 0]
    return _standings(similarity, best, torch.ones_like(best))


def _standings(similarity: Tensor, best: Tensor, num_right: Tensor) -> Tensor:
    """Per query: wrong candidates ahead of the best right one, wrong ones level with it, right ones level with it."""
    ahead = (similarity > best[:, None] + LEVEL).sum(dim=1)
    level = (similarity >= best[:, None] - LEVEL).sum(dim=1) - ahead - num_right
    return torch.stack([ahead.to(level.dtype), level, num_right], dim=1).double()


def _rank(standings: Tensor) -> Ranking:
    ahead, wrong, right = standings.unbind(dim=1)
    hit = {k: torch.zeros_like(ahead) for k in CUTOFFS}
    miss = torch.ones_like(ahead)
    for place in range(max(CUTOFFS)):
        # The chance that the next place among the level ones is taken by a wrong one too.
        miss = miss * (wrong - place).clamp(min=0) / (wrong + right - place).clamp(min=1)
        for k in CUTOFFS:
            hit[k] = torch.where(ahead + place + 1 == k, 1 - miss, hit[k])
    rank = 1 + ahead + wrong / (right + 1)
    # quantile() refuses long inputs, and median() takes the lower of two.
    ordered = rank.sort().values
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return Ranking({k: float(value.mean()) for k, value in hit.items()}, float(middle))
