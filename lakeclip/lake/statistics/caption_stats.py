"""Taking in a lake's captions, image sizes and other values block by block, and what they come to in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lakeclip.lake.survey.tally import MostCommon, Repeats

#: Shorter sides that matter: what is smaller is blown up to train on.
SMALL_SIDES = (64, 224)
#: Shapes by width / height: name → below which ratio.
SHAPES = {
    "taller than 1:2": 0.5,
    "1:2 to 4:5": 0.8,
    "about square": 1.25,
    "5:4 to 2:1": 2.0,
    "wider than 2:1": float("inf"),
}
#: How many examples of anything are kept.
SHOWN = 5
_LONGEST = 300


class TokenCount(NamedTuple):
    """How a model will read captions.

    Attributes:
        count: tokens of a caption, start and end included.
        limit: more than this are cut off.
    """

    count: Callable[[str], int]
    limit: int


@dataclass
class Duplicates:
    """How often the same comes again.

    Attributes:
        rows: how many were compared.
        share: of those, how many are not the only one of their kind.
        is_estimate: whether that is from a part of them, there being too many for memory.
        common: the most common ones and their counts; of an estimate, counts are lower bounds.
    """

    rows: int
    share: float
    is_estimate: bool = False
    common: list[tuple[str, int]] = field(default_factory=list)


class DuplicateCounter:
    """Finds out how many images are there more than once."""

    def __init__(self) -> None:
        self._seen = Repeats()
        self._rows = 0

    def add(self, image: bytes) -> None:
        """Take in an image, or what stands for it."""
        self._seen.add(image)
        self._rows += 1

    def result(self) -> Duplicates:
        """What has been found."""
        return Duplicates(self._rows, self._seen.share, not self._seen.is_exact)


class CaptionCensus:
    """Takes in captions.

    Attributes:
        per_row: captions of a row → rows, of those that have any.
        words, characters, tokens: length → captions.
        truncated: a few captions with too many tokens.
    """

    def __init__(self, tokens: TokenCount | None) -> None:
        self.per_row: Counter[int] = Counter()
        self.words: Counter[int] = Counter()
        self.characters: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self.truncated: list[str] = []
        self._read = tokens
        # Both exact up to the same number of distinct captions.
        self._repeats, self._common = Repeats(200_000), MostCommon[str](100_000)
        self._first: list[str] = []

    def add(self, captions: Sequence[tuple[str, ...]]) -> None:
        """Take in those of some rows."""
        first = [texts[0] for texts in captions if texts]
        self._common.add(first)
        for text in first:
            self._repeats.add(text.encode("utf-8", "replace"))
        self.per_row.update(len(texts) for texts in captions if texts)
        texts = [text for row in captions for text in row]
        self.words.update(len(text.split()) for text in texts)
        self.characters.update(len(text) for text in texts)
        if self._read is not None:
            lengths = [self._read.count(text) for text in texts]
            self.tokens.update(lengths)
            cut = [text for text, length in zip(texts, lengths, strict=True) if length > self._read.limit]
            self.truncated = list(dict.fromkeys([*self.truncated, *cut]))[:SHOWN]
        self._first += evenly(first)
        if len(self._first) > 1000:
            self._first = self._first[::2]

    @property
    def examples(self) -> list[str]:
        """A few first captions from everywhere."""
        return [shorten(text) for text in evenly(self._first)]

    def duplicates(self) -> Duplicates:
        """Of first captions."""
        common = [(shorten(text), count) for text, count in self._common.top(SHOWN) if count > 1]
        return Duplicates(self.per_row.total(), self._repeats.share, not self._repeats.is_exact, common)


class SizeCensus:
    """Takes in formats and sizes.

    Attributes:
        rows: how many.
        formats: format → images.
        widths, heights: pixels → images.
        common: (width, height) → images.
        shapes: images by their proportions.
        small: pixels → images whose shorter side has fewer.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.formats: Counter[str] = Counter()
        self.widths: Counter[int] = Counter()
        self.heights: Counter[int] = Counter()
        self.common = MostCommon[tuple[int, int]]()
        self.shapes = dict.fromkeys(SHAPES, 0)
        self.small = dict.fromkeys(SMALL_SIDES, 0)

    def add(self, kind: str, width: int, height: int) -> None:
        """Take in a row: "" and zeros if it has no image."""
        self.rows += 1
        if kind:
            self.formats[kind] += 1
        if width <= 0 or height <= 0:
            return
        self.widths[width] += 1
        self.heights[height] += 1
        self.common.add([(width, height)])
        self.shapes[next(name for name, below in SHAPES.items() if width / height < below)] += 1
        for side in SMALL_SIDES:
            self.small[side] += min(width, height) < side


def shorten(text: str, longest: int = _LONGEST) -> str:
    """The beginning of a text."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def evenly(texts: list[str]) -> list[str]:
    """A few, spread evenly."""
    return [texts[place] for place in np.linspace(0, len(texts) - 1, min(SHOWN, len(texts))).astype(int)]
