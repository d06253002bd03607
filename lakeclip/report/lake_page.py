"""Self-contained HTML page on the content of a lake: statistics, histograms, and sample rows."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lakeclip.errors import ImageError
from lakeclip.lake.images import ImageInfo, check_image
from lakeclip.lake.statistics.caption_stats import TokenCount
from lakeclip.lake.statistics.counters import Bin, format_percent
from lakeclip.lake.statistics.samples import LakeSample
from lakeclip.lake.statistics.summary import LakeSummary
from lakeclip.report.gallery import Picture, thumbnail
from lakeclip.report.page import page_template, write_page

#: Characters shown of a caption, of a value, and of the truncated part of a caption.
_MAX_CAPTION = 2_000
_MAX_VALUE = 500
_MAX_TRUNCATED = 200
#: Further captions of a row are collapsed.
_OPEN_CAPTIONS = 5


class CutText(NamedTuple):
    """A caption as a model reads it: the part it reads, the truncated part, and the number of hidden characters."""

    kept: str
    cut: str
    hidden: int


class Card(NamedTuple):
    """A row of the lake, prepared for the page."""

    sample: LakeSample
    picture: Picture | None
    about: str
    captions: list[CutText]
    folded: list[CutText]
    metadata: list[tuple[str, str]]


class Bar(NamedTuple):
    """One bar of a histogram; its height is relative to the tallest bar."""

    label: str
    title: str
    height: float
    is_cut: bool


def write_lake_page(
    path: Path,
    summary: LakeSummary,
    samples: Sequence[LakeSample],
    faulty: Sequence[LakeSample] = (),
    *,
    tokens: TokenCount | None = None,
) -> None:
    """Write the page.

    Args:
        samples: rows to show.
        faulty: unusable rows, shown separately.
        tokens: token counts of a model, to show where captions are truncated.

    Raises:
        OutputError: the file cannot be written.
    """
    page = render_lake_page(summary, samples, faulty, tokens=tokens)
    write_page(path, page)


def render_lake_page(
    summary: LakeSummary,
    samples: Sequence[LakeSample],
    faulty: Sequence[LakeSample],
    *,
    tokens: TokenCount | None,
) -> str:
    """Render the page. All text from data is escaped, and the page forbids scripts and network access."""
    return page_template("lake_page.html.jinja").render(
        summary=summary,
        name=Path(summary.path).name or summary.path,
        histograms=_histograms(summary),
        problems=[(problem.reason, problem.rows) for problem in summary.problems],
        images=sum(summary.shapes.values()),
        small=[(f"shorter side below {side}", count) for side, count in summary.shorter_side_below.items()],
        columns=[(name, kind, _role(name, summary), _content(name, summary)) for name, kind in summary.columns.items()],
        truncated=[_cut(text, tokens) for text in summary.truncated_examples],
        cards=[_card(sample, tokens) for sample in samples],
        faulty=[_card(sample, tokens) for sample in faulty],
        version=version("lakeclip"),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _histograms(summary: LakeSummary) -> list[dict[str, Any]]:
    histograms = []
    for title, bins, limit, spread in (
        ("Words per caption", summary.words_histogram, None, summary.caption_words),
        ("Tokens per caption", summary.tokens_histogram, summary.token_limit, summary.caption_tokens),
    ):
        if bins and spread is not None:
            about = f"{spread.min:,} to {spread.max:,}, median {spread.median:,.0f}, mean {spread.mean:,.1f}"
            histograms.append({"title": title, "about": about, "bars": _bars(bins, limit), "limit": limit})
    return histograms


def _bars(bins: Sequence[Bin], limit: int | None) -> list[Bar]:
    total, most = sum(bin_.count for bin_ in bins), max(bin_.count for bin_ in bins)
    bars = []
    for bin_ in bins:
        low, high, count = bin_.low, bin_.high, bin_.count
        span = f"{low} and more" if high is None else f"{low}" if high == low else f"{low} to {high}"
        is_cut = limit is not None and low > limit
        title = f"{span}: {count:,} ({format_percent(count / total)})"
        bars.append(Bar(f"{low}{'+' if high is None else ''}", title, count / (most or 1), is_cut))
    return bars


def _role(name: str, summary: LakeSummary) -> str:
    if name in summary.label_columns:
        return "labels"
    return {summary.image_column: "images", summary.caption_column: "captions"}.get(name, "")


def _content(name: str, summary: LakeSummary) -> str:
    return summary.contents[name].one_line if name in summary.contents else ""


def _card(sample: LakeSample, tokens: TokenCount | None) -> Card:
    picture, about = None, ""
    # Check the header first: a few bytes can declare any size, and a damaged image may still be decodable.
    info = check_image(sample.image) if sample.image else ""
    if isinstance(info, ImageInfo):
        about = f"{info.format.upper()} {info.width}×{info.height}, {max(1, round(len(sample.image) / 1024)):,} KB"
        try:
            picture = thumbnail(sample.image, "")
        except ImageError as error:
            about += f" ({error.what})"
    captions = [_cut(text, tokens) for text in sample.captions]
    metadata = [(name, _shorten(value)) for name, value in sample.metadata.items()]
    return Card(sample, picture, about, captions[:_OPEN_CAPTIONS], captions[_OPEN_CAPTIONS:], metadata)


def _cut(text: str, tokens: TokenCount | None) -> CutText:
    """Split a caption where a model truncates it: after the longest prefix that fits its tokens."""
    shown = text[:_MAX_CAPTION]
    if tokens is None or tokens.count(text) <= tokens.limit:
        return CutText(shown, "", len(text) - len(shown))
    end = bisect.bisect_right(range(len(shown) + 1), tokens.limit, key=lambda length: tokens.count(shown[:length])) - 1
    cut = shown[end : end + _MAX_TRUNCATED]
    return CutText(shown[:end], cut, len(text) - end - len(cut))


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}…"
