"""Statistics of a lake: of all rows of a small one, of an even sample of a large one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.images import read_header
from lakeclip.lake.schema import UNUSABLE
from lakeclip.lake.statistics.caption_stats import (
    NUM_EXAMPLES,
    CaptionStats,
    DuplicateCounter,
    Duplicates,
    SizeStats,
    TokenCount,
    truncate,
)
from lakeclip.lake.statistics.contents import ColumnContent, ColumnStats, find_label_columns, is_plain
from lakeclip.lake.statistics.counters import Bin, Stats, histogram, stats_of_counts
from lakeclip.lake.statistics.health import check_rows, has_checksums

#: Rows that statistics are computed from, at most; in blocks, so that a huge lake is read in a few places.
MAX_ROWS = 100_000
_NUM_BLOCKS = 40
_BLOCK_ROWS = 10_000
#: Rows whose image is read and decoded, at most.
MAX_CHECKED = 256
#: Images in memory at once.
_CHECK_ROWS = 64

_NUM_COMMON_SIZES = 8
#: Characters of an example of a caption with too many tokens.
_MAX_CHARACTERS = 1200
_SIZE_COLUMNS = {"format": "text", "width": "int32", "height": "int32"}


@dataclass
class Problem:
    """A reason why rows cannot be used for training, the number of such rows, and a few of their indices."""

    reason: str
    rows: int = 0
    examples: list[int] = field(default_factory=list)


@dataclass
class LakeSummary:
    """Statistics of a lake. "Read rows" are those that the statistics come from.

    Attributes:
        path: the lake's path.
        version: its version.
        query: the clause that chose the rows.
        num_rows: number of rows after the query.
        total_rows: number of rows before the query.
        columns: name → type.
        image_column: the column with images; None if no column is usable.
        caption_column: the column with captions, likewise.
        label_columns: columns that look like class labels.
        contents: summary of each column of texts or numbers.
        rows_looked_at: number of read rows.
        with_captions: number of read rows with a caption.
        num_captions: number of captions.
        captions_per_row: of rows that have a caption.
        caption_words, caption_characters, caption_tokens: lengths of captions. Tokens include the start and the end.
        words_histogram, tokens_histogram: the same as bins; the last bin of tokens holds the truncated captions.
        token_limit: captions with more tokens are truncated; None if no tokenizer was given.
        truncated: number of truncated captions.
        truncated_examples: a few of them.
        duplicate_captions: among the rows' first captions.
        duplicate_images: among the images' bytes, or their checksums and sizes if the lake stores them.
        unusable: reason → number of rows that the lake marks as unusable.
        formats: format → number of images.
        width: pixels, as encoded.
        height: pixels, as encoded.
        common_sizes: the most common "width×height" and their counts.
        shapes: aspect ratio → number of images.
        shorter_side_below: pixels → number of images whose shorter side is smaller.
        sizes_looked_at: number of rows that the sizes and formats come from.
        rows_checked: number of rows whose image was read and decoded.
        bad: number of them that cannot be used for training.
        problems: the reasons.
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
    captions_per_row: Stats | None = None
    caption_words: Stats | None = None
    caption_characters: Stats | None = None
    caption_tokens: Stats | None = None
    words_histogram: list[Bin] = field(default_factory=list)
    tokens_histogram: list[Bin] = field(default_factory=list)
    token_limit: int | None = None
    truncated: int = 0
    truncated_examples: list[str] = field(default_factory=list)
    duplicate_captions: Duplicates | None = None
    duplicate_images: Duplicates | None = None
    unusable: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    width: Stats | None = None
    height: Stats | None = None
    common_sizes: list[tuple[str, int]] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)
    shorter_side_below: dict[int, int] = field(default_factory=dict)
    sizes_looked_at: int = 0
    rows_checked: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """Return the summary as plain values, for JSON."""
        return asdict(self)


def summarize(
    lake: Lake,
    *,
    tokens: TokenCount | None = None,
    every_row: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> LakeSummary:
    """Compute a lake's statistics. For a lake without usable columns only its columns are listed.

    Args:
        tokens: counts the captions' tokens; by default they are not counted.
        every_row: read all rows and decode all images, in the same memory.
        on_progress: called repeatedly with the current stage, the rows done, and the rows to do.

    Raises:
        LakeError: a column cannot be read.
    """
    summary = LakeSummary(lake.path, lake.version, lake.query, len(lake), lake.num_total_rows, lake.columns)
    summary.label_columns = find_label_columns(lake.columns)
    for name in ("caption_column", "image_column"):
        with contextlib.suppress(LakeError):
            setattr(summary, name, getattr(lake, name))
    blocks = _blocks(len(lake), len(lake) if every_row else MAX_ROWS)
    summary.rows_looked_at = sum(len(block) for block in blocks)
    summary.token_limit = tokens.limit if tokens is not None else None
    rows = _RowStats(lake, summary, tokens)
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


def _blocks(total: int, max_rows: int) -> list[NDArray[np.int64]]:
    """Return up to `max_rows` of `total` rows, in evenly spread blocks."""
    if total <= max_rows:
        return [np.arange(start, min(start + _BLOCK_ROWS, total)) for start in range(0, total, _BLOCK_ROWS)]
    size = max_rows // _NUM_BLOCKS
    return [np.arange(start, start + size) for start in np.linspace(0, total - size, _NUM_BLOCKS).astype(np.int64)]


class _RowStats:
    """Statistics of everything but the images' content, added block by block."""

    def __init__(self, lake: Lake, summary: LakeSummary, tokens: TokenCount | None) -> None:
        self.lake, self.summary = lake, summary
        self.has_checksums = summary.image_column is not None and has_checksums(lake)
        self.columns = {name: ColumnStats() for name, kind in lake.columns.items() if is_plain(kind)}
        # Captions have statistics of their own, and checksums are of no interest.
        self.hidden = (summary.caption_column, "crc32" if self.has_checksums else None)
        self.captions = CaptionStats(tokens)
        self.sizes = SizeStats()
        self.images = DuplicateCounter()
        self.unusable: Counter[str] = Counter()

    def add(self, block: NDArray[np.int64]) -> None:
        values: dict[str, list[object]] = {}
        for name, column in self.columns.items():
            values[name] = self.lake.values(name, block)
            if name not in self.hidden:
                column.add(values[name])
        if self.lake.columns.get(UNUSABLE) == "text":
            self.unusable.update(_reason_kind(str(reason)) for reason in values[UNUSABLE] if reason)
        if self.summary.caption_column is not None:
            self.captions.add(self.lake.captions(block))
        if self.summary.image_column is None or not _SIZE_COLUMNS.items() <= self.lake.columns.items():
            return
        checksums = values["crc32"] if self.has_checksums else [None] * len(block)
        for checksum, *size in zip(checksums, *(values[name] for name in _SIZE_COLUMNS), strict=True):
            kind, width, height = str(size[0]), _int_or_zero(size[1]), _int_or_zero(size[2])
            self.sizes.add(kind, width, height)
            if kind and checksum is not None:
                self.images.add(f"{checksum} {width} {height}".encode())

    def fill(self) -> None:
        summary = self.summary
        if self.has_checksums:
            summary.duplicate_images = self.images.result()
        summary.contents = {name: column.content() for name, column in self.columns.items() if name not in self.hidden}
        summary.unusable = dict(self.unusable.most_common())
        if summary.caption_column is None:
            return
        captions = self.captions
        summary.with_captions = captions.per_row.total()
        if not summary.with_captions:
            return
        summary.num_captions = captions.words.total()
        summary.captions_per_row = stats_of_counts(captions.per_row)
        summary.caption_words, summary.words_histogram = stats_of_counts(captions.words), histogram(captions.words)
        summary.caption_characters = stats_of_counts(captions.characters)
        limit = summary.token_limit
        if limit is not None:
            summary.caption_tokens = stats_of_counts(captions.tokens)
            summary.tokens_histogram = histogram(captions.tokens, limit)
            summary.truncated = sum(count for length, count in captions.tokens.items() if length > limit)
            summary.truncated_examples = [truncate(text, _MAX_CHARACTERS) for text in captions.truncated]
        summary.duplicate_captions = captions.duplicates()
        summary.examples = captions.examples


def _check_images(
    lake: Lake,
    blocks: list[NDArray[np.int64]],
    summary: LakeSummary,
    sizes: SizeStats,
    *,
    every_row: bool,
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    """Read and decode the images of a few rows, or of all; take sizes from their headers if no column has them."""
    needs_sizes = not sizes.rows
    images = DuplicateCounter()
    problems: dict[str, Problem] = {}
    total = summary.rows_looked_at
    # Evenly spread over the read rows.
    checked = (
        np.arange(total) if every_row else np.unique(np.linspace(0, total - 1, min(MAX_CHECKED, total)).astype(int))
    )
    starts = np.cumsum([0, *(len(block) for block in blocks)])
    for begin in range(0, len(checked), _CHECK_ROWS):
        positions = checked[begin : begin + _CHECK_ROWS]
        block_numbers = np.searchsorted(starts, positions, side="right") - 1
        indices = [int(blocks[b][position - starts[b]]) for b, position in zip(block_numbers, positions, strict=True)]
        for check in check_rows(lake, indices, has_captions=summary.caption_column is not None):
            summary.rows_checked += 1
            if needs_sizes:
                sizes.add(*_read_header(check.image))
            if check.image:
                images.add(check.image)
            if check.problem:
                summary.bad += 1
                reason = _reason_kind(check.problem)
                problem = problems.setdefault(reason, Problem(reason))
                problem.rows += 1
                problem.examples = [*problem.examples, check.position][:NUM_EXAMPLES]
        if on_progress is not None:
            on_progress("images", summary.rows_checked, len(checked))
    summary.problems = sorted(problems.values(), key=lambda problem: -problem.rows)
    if summary.duplicate_images is None:
        summary.duplicate_images = images.result()


def _fill_sizes(summary: LakeSummary, sizes: SizeStats) -> None:
    summary.sizes_looked_at = sizes.rows
    summary.formats = dict(sizes.formats.most_common())
    summary.width, summary.height = stats_of_counts(sizes.widths), stats_of_counts(sizes.heights)
    if sizes.widths:
        summary.common_sizes = [
            (f"{width}×{height}", count) for (width, height), count in sizes.common.most_common(_NUM_COMMON_SIZES)
        ]
        summary.shapes, summary.shorter_side_below = sizes.shapes, sizes.small


def _read_header(data: bytes) -> tuple[str, int, int]:
    return (read_header(data) or ("not an image", 0, 0)) if data else ("", 0, 0)


def _reason_kind(reason: str) -> str:
    """Return a reason without its details, so that equal ones are counted together."""
    return reason.partition(":")[0]


def _int_or_zero(value: object) -> int:
    return value if isinstance(value, int) else 0
