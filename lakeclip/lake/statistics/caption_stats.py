"""Statistics of captions, image sizes and duplicates, computed block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lakeclip.lake.statistics.counters import MostCommon, RepeatCounter

#: Image sizes of training: images whose shorter side is smaller are enlarged.
SMALL_SIDES = (64, 224)
#: Aspect ratios (width / height): name → upper limit.
SHAPES = {
    "taller than 1:2": 0.5,
    "1:2 to 4:5": 0.8,
    "about square": 1.25,
    "5:4 to 2:1": 2.0,
    "wider than 2:1": float("inf"),
}
#: Number of examples that are kept.
NUM_EXAMPLES = 5
_MAX_CHARACTERS = 300


class TokenCount(NamedTuple):
    """Function that counts a caption's tokens, and the context length of the model.

    Attributes:
        count: returns the number of tokens of a caption, start and end included.
        limit: the context length; longer captions are truncated.
    """

    count: Callable[[str], int]
    limit: int


@dataclass
class Duplicates:
    """Share of duplicates among captions or images.

    Attributes:
        rows: number of rows that were compared.
        share: share of rows whose value occurs more than once.
        is_estimate: True if the share comes from a sample, because there are too many values for the memory.
        common: the most common values and their counts; lower bounds if the share is an estimate.
    """

    rows: int
    share: float
    is_estimate: bool = False
    common: list[tuple[str, int]] = field(default_factory=list)


class DuplicateCounter:
    """Counter of images that occur more than once."""

    def __init__(self) -> None:
        self._seen = RepeatCounter()
        self._rows = 0

    def add(self, image: bytes) -> None:
        """Count an image, given as its bytes or as its checksum and size."""
        self._seen.add(image)
        self._rows += 1

    def result(self) -> Duplicates:
        """Return the duplicates among the images so far."""
        return Duplicates(self._rows, self._seen.share, not self._seen.is_exact)


class CaptionStats:
    """Statistics of captions.

    Args:
        tokens: counts tokens; None to leave them out.

    Attributes:
        per_row: number of captions → number of rows, for rows that have any.
        words, characters, tokens: length → number of captions.
        truncated: a few captions with too many tokens.
    """

    def __init__(self, tokens: TokenCount | None) -> None:
        self.per_row: Counter[int] = Counter()
        self.words: Counter[int] = Counter()
        self.characters: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self.truncated: list[str] = []
        self._token_count = tokens
        # Both are exact up to the same number of distinct captions.
        self._repeats, self._common = RepeatCounter(200_000), MostCommon[str](100_000)
        self._first: list[str] = []

    def add(self, captions: Sequence[tuple[str, ...]]) -> None:
        """Add the captions of some rows."""
        first = [texts[0] for texts in captions if texts]
        self._common.add(first)
        for text in first:
            self._repeats.add(text.encode("utf-8", "replace"))
        self.per_row.update(len(texts) for texts in captions if texts)
        texts = [text for row in captions for text in row]
        self.words.update(len(text.split()) for text in texts)
        self.characters.update(len(text) for text in texts)
        if self._token_count is not None:
            lengths = [self._token_count.count(text) for text in texts]
            self.tokens.update(lengths)
            truncated = [text for text, length in zip(texts, lengths, strict=True) if length > self._token_count.limit]
            self.truncated = list(dict.fromkeys([*self.truncated, *truncated]))[:NUM_EXAMPLES]
        self._first += pick_evenly(first)
        if len(self._first) > 1000:
            self._first = self._first[::2]

    @property
    def examples(self) -> list[str]:
        """A few rows' first captions, evenly spread over the lake."""
        return [truncate(text) for text in pick_evenly(self._first)]

    def duplicates(self) -> Duplicates:
        """Return the duplicates among the rows' first captions."""
        common = [(truncate(text), count) for text, count in self._common.most_common(NUM_EXAMPLES) if count > 1]
        return Duplicates(self.per_row.total(), self._repeats.share, not self._repeats.is_exact, common)


class SizeStats:
    """Statistics of image formats and sizes.

    Attributes:
        rows: number of rows.
        formats: format → number of images.
        widths, heights: pixels → number of images.
        common: (width, height) → number of images.
        shapes: aspect ratio → number of images.
        small: pixels → number of images whose shorter side is smaller.
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
        """Add the format and size of a row; "" and zeros if it has no image."""
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


def truncate(text: str, max_characters: int = _MAX_CHARACTERS) -> str:
    """Return the beginning of a text, with an ellipsis if it is longer."""
    return text if len(text) <= max_characters else f"{text[:max_characters]}…"


def pick_evenly(texts: list[str]) -> list[str]:
    """Return a few of the texts, evenly spread."""
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(NUM_EXAMPLES, len(texts))).astype(int)]
