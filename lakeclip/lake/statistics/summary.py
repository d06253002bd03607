"""What is in a lake, in figures: all rows of a small one, an even sample of a large one."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lakeclip.errors import LakeError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.schema import UNUSABLE
from lakeclip.lake.survey.census import (
    SHOWN,
    CaptionCensus,
    DuplicateCounter,
    Duplicates,
    SizeCensus,
    TokenCount,
    shorten,
)
from lakeclip.lake.survey.contents import ColumnContent, ContentReader, find_label_columns, is_plain
from lakeclip.lake.survey.health import Finding, check_rows, has_checksums
from lakeclip.lake.survey.tally import Bin, Spread, histogram, spread

#: Figures are taken from at most this many rows, in blocks, so that a huge lake is read in a few places.
MAX_ROWS = 100_000
_PLACES = 40
_BLOCK = 10_000
#: So many rows have their image read and decoded.
MAX_CHECKED = 256
#: Their images are in memory at once.
_CHECK_BLOCK = 64

_COMMON_SIZES = 8
#: Of an example of a caption that is too long.
_LONGEST = 1200
_SIZE_COLUMNS = {"format": "text", "width": "int32", "height": "int32"}


@dataclass
class Problem:
    """One kind of reason why rows cannot be trained on, how many have it, and a few of them (index after the query)."""

    reason: str
    rows: int = 0
    examples: list[int] = field(default_factory=list)


@dataclass
class Summary:
    """The figures.

    Attributes:
        path: the lake.
        version: its version.
        query: the clause that chose the rows.
        num_rows: rows, after the query.
        total_rows: rows in the lake.
        columns: name → type.
        image_column: the column with images, or None if there is none that can be used.
        caption_column: the column with captions, likewise.
        label_columns: columns that look like the classes of labelled images.
        contents: what stands in each column of texts or numbers.
        rows_looked_at: how many rows the figures below come from.
        with_captions: rows among them that have a caption.
        num_captions: all their captions.
        captions_per_row: of those that have one.
        caption_words, caption_characters, caption_tokens: in a caption. Tokens include the start and the end.
        words_histogram, tokens_histogram: the same as bars; the last bar of tokens is what is cut.
        token_limit: captions of more tokens are cut; None if no tokenizer was given.
        truncated: captions that are cut.
        truncated_examples: a few of those.
        duplicate_captions: of first captions.
        duplicate_images: of images with equal bytes (by checksum and size, where the lake has those).
        unusable: what the lake itself says of rows it has no image for: reason → rows.
        formats: how many images are of each format.
        width: pixels across, as encoded.
        height: pixels down, as encoded.
        common_sizes: the most common "width×height" and their counts.
        shapes: images by their proportions.
        shorter_side_below: pixels → images whose shorter side has fewer.
        sizes_looked_at: how many rows the sizes and formats come from.
        rows_checked: how many rows had their image read and decoded.
        bad: rows among them that cannot be trained on.
        problems: why.
        examples: a few rows' first captions.
    """

    path: str
    version: str
    query: str | None
    num_rows: int
    total_rows: int
    columns: dict[str, str]
    image_column: str | None = None
    caption_column: str | None = None
    label_columns: list[str] = field(default_factory=list)
    contents: dict[str, ColumnContent] = field(default_factory=dict)
    rows_looked_at: int = 0
    with_captions: int | None = None
    num_captions: int = 0
    captions_per_row: Spread | None = None
    caption_words: Spread | None = None
    caption_characters: Spread | None = None
    caption_tokens: Spread | None = None
    words_histogram: list[Bin] = field(default_factory=list)
    tokens_histogram: list[Bin] = field(default_factory=list)
    token_limit: int | None = None
    truncated: int = 0
    truncated_examples: list[str] = field(default_factory=list)
    duplicate_captions: Duplicates | None = None
    duplicate_images: Duplicates | None = None
    unusable: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    width: Spread | None = None
    height: Spread | None = None
    common_sizes: list[tuple[str, int]] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)
    shorter_side_below: dict[int, int] = field(default_factory=dict)
    sizes_looked_at: int = 0
    rows_checked: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """As plain values, for JSON."""
        return asdict(self)


def summarize(
    lake: Lake,
    *,
    tokens: TokenCount | None = None,
    every_row: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Summary:
    """Look at a lake. One without usable columns has its columns listed and no more.

    Args:
        tokens: how a model will read the captions. Default: their tokens are not counted.
        every_row: look at all rows, and decode all images, in the same memory.
        on_progress: called now and then with what is being done, rows done, and rows to do.

    Raises:
        LakeError: a column cannot be read.
    """
    summary = Summary(lake.path, lake.version, lake.query, len(lake), lake.total_rows, lake.columns)
    summary.label_columns = find_label_columns(lake.columns)
    for name in ("caption_column", "image_column"):
        with contextlib.suppress(LakeError):
            setattr(summary, name, getattr(lake, name))
    blocks = _blocks(len(lake), len(lake) if every_row else MAX_ROWS)
    summary.rows_looked_at = sum(len(block) for block in blocks)
    summary.token_limit = tokens.limit if tokens is not None else None
    rows = _Rows(lake, summary, tokens)
    done = 0
    for block in blocks:
        rows.add(block)
        done += len(block)
        if on_progress is not None:
            on_progress("columns", done, summary.rows_looked_at)
    rows.fill()
    if summary.image_column is not None:
        _check_images(lake, blocks, summary, rows.sizes, every_row=every_row, on_progress=on_progress)
        _fill_sizes(summary, rows.sizes)
    return summary


def _blocks(total: int, most: int) -> list[NDArray[np.int64]]:
    """Up to `most` of `total` rows, in blocks that lie evenly."""
    if total <= most:
        return [np.arange(start, min(start + _BLOCK, total)) for start in range(0, total, _BLOCK)]
    size = most // _PLACES
    return [np.arange(start, start + size) for start in np.linspace(0, total - size, _PLACES).astype(np.int64)]


class _Rows:
    """Takes in everything but the images, block by block."""

    def __init__(self, lake: Lake, summary: Summary, tokens: TokenCount | None) -> None:
        self.lake, self.summary = lake, summary
        self.has_sums = summary.image_column is not None and has_checksums(lake)
        self.readers = {name: ContentReader() for name, kind in lake.columns.items() if is_plain(kind)}
        # The captions have figures of their own, and checksums say nothing.
        self.hidden = (summary.caption_column, "crc32" if self.has_sums else None)
        self.captions = CaptionCensus(tokens)
        self.sizes = SizeCensus()
        self.images = DuplicateCounter()
        self.unusable: Counter[str] = Counter()

    def add(self, block: NDArray[np.int64]) -> None:
        values: dict[str, list[object]] = {}
        for name, reader in self.readers.items():
            values[name] = self.lake.values(name, block)
            if name not in self.hidden:
                reader.add(values[name])
        if self.lake.columns.get(UNUSABLE) == "text":
            self.unusable.update(_kind(str(reason)) for reason in values[UNUSABLE] if reason)
        if self.summary.caption_column is not None:
            self.captions.add(self.lake.captions(block))
        if self.summary.image_column is None or not _SIZE_COLUMNS.items() <= self.lake.columns.items():
            return
        sums = values["crc32"] if self.has_sums else [None] * len(block)
        for checksum, *size in zip(sums, *(values[name] for name in _SIZE_COLUMNS), strict=True):
            kind, width, height = str(size[0]), _whole(size[1]), _whole(size[2])
            self.sizes.add(kind, width, height)
            if kind and checksum is not None:
                self.images.add(f"{checksum} {width} {height}".encode())

    def fill(self) -> None:
        summary = self.summary
        if self.has_sums:
            summary.duplicate_images = self.images.result()
        summary.contents = {name: found.content() for name, found in self.readers.items() if name not in self.hidden}
        summary.unusable = dict(self.unusable.most_common())
        if summary.caption_column is None:
            return
        found = self.captions
        summary.with_captions = found.per_row.total()
        if not summary.with_captions:
            return
        summary.num_captions = found.words.total()
        summary.captions_per_row = spread(found.per_row)
        summary.caption_words, summary.words_histogram = spread(found.words), histogram(found.words)
        summary.caption_characters = spread(found.characters)
        limit = summary.token_limit
        if limit is not None:
            summary.caption_tokens, summary.tokens_histogram = spread(found.tokens), histogram(found.tokens, limit)
            summary.truncated = sum(count for length, count in found.tokens.items() if length > limit)
            summary.truncated_examples = [shorten(text, _LONGEST) for text in found.truncated]
        summary.duplicate_captions = found.duplicates()
        summary.examples = found.examples


def _check_images(
    lake: Lake,
    blocks: list[NDArray[np.int64]],
    summary: Summary,
    sizes: SizeCensus,
    *,
    every_row: bool,
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    """Read and decode the images of a few rows, or of all. Where no column tells sizes, the headers do."""
    needs_sizes = not sizes.rows
    images = DuplicateCounter()
    problems: dict[str, Problem] = {}
    total = summary.rows_looked_at
    # Evenly among the rows that were looked at.
    wanted = (
        np.arange(total) if every_row else np.unique(np.linspace(0, total - 1, min(MAX_CHECKED, total)).astype(int))
    )
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    for begin in range(0, len(wanted), _CHECK_BLOCK):
        places = wanted[begin : begin + _CHECK_BLOCK]
        of_block = np.searchsorted(starts, places, side="right") - 1
        indices = [int(blocks[b][place - starts[b]]) for b, place in zip(of_block, places, strict=True)]
        for finding in _check_quietly(lake, indices, summary):
            summary.rows_checked += 1
            if needs_sizes:
                sizes.add(*_header(finding.image))
            if finding.image:
                images.add(finding.image)
            if finding.problem:
                summary.bad += 1
                reason = _kind(finding.problem)
                problem = problems.setdefault(reason, Problem(reason))
                problem.rows += 1
                problem.examples = [*problem.examples, finding.position][:SHOWN]
        if on_progress is not None:
            on_progress("images", summary.rows_checked, len(wanted))
    summary.problems = sorted(problems.values(), key=lambda problem: -problem.rows)
    if summary.duplicate_images is None:
        summary.duplicate_images = images.result()


def _fill_sizes(summary: Summary, sizes: SizeCensus) -> None:
    summary.sizes_looked_at = sizes.rows
    summary.formats = dict(sizes.formats.most_common())
    summary.width, summary.height = spread(sizes.widths), spread(sizes.heights)
    if sizes.widths:
        summary.common_sizes = [
            (f"{width}×{height}", count) for (width, height), count in sizes.common.top(_COMMON_SIZES)
        ]
        summary.shapes, summary.shorter_side_below = sizes.shapes, sizes.small


def _check_quietly(lake: Lake, indices: list[int], summary: Summary) -> list[Finding]:
    with warnings.catch_warnings():  # what Pillow thinks of odd files
        warnings.simplefilter("ignore")
        return check_rows(lake, indices, has_captions=summary.caption_column is not None)


def _header(data: bytes) -> tuple[str, int, int]:
    if not data:
        return "", 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return (image.format or "?").lower(), *image.size
        except Exception:  # Pillow raises whatever bad bytes make it raise
            return "not an image", 0, 0


def _kind(reason: str) -> str:
    """A reason without its details, so that like ones are counted together."""
    return reason.partition(":")[0]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
