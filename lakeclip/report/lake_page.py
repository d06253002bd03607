"""What is in a lake as one page, whole in itself: the figures, histograms, and rows to look at."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lakeclip.errors import ImageError
from lakeclip.evaluation.pages.gallery import Picture, thumbnail
from lakeclip.evaluation.pages.page import page_template, write_page
from lakeclip.lake.sources.images import ImageInfo, check_image
from lakeclip.lake.survey.census import TokenCount
from lakeclip.lake.survey.samples import LakeSample
from lakeclip.lake.survey.summary import Summary
from lakeclip.lake.survey.tally import Bin, percent

#: More of a caption or a value than this is not shown.
_LONGEST = 2_000
_LONGEST_VALUE = 500
#: Of what is cut off, the beginning says enough.
_LONGEST_CUT = 200
#: Further captions of a row are folded away.
_OPEN_CAPTIONS = 5


class CutText(NamedTuple):
    """A caption as a model reads it: what it keeps, what is cut off, and how many characters are not shown at all."""

    kept: str
    cut: str
    hidden: int


class Card(NamedTuple):
    """One row as it is shown."""

    sample: LakeSample
    picture: Picture | None
    about: str
    captions: list[CutText]
    folded: list[CutText]
    metadata: list[tuple[str, str]]


class Bar(NamedTuple):
    """One bar of a histogram; height is a share of the tallest."""

    label: str
    title: str
    height: float
    is_cut: bool


def write_lake_page(
    path: Path,
    summary: Summary,
    samples: Sequence[LakeSample],
    faulty: Sequence[LakeSample] = (),
    *,
    tokens: TokenCount | None = None,
) -> None:
    """Write the page.

    Args:
        samples: rows to look at.
        faulty: rows that cannot be trained on, shown apart.
        tokens: how a model reads captions; those that are too long show where they are cut.

    Raises:
        OutputError: the file cannot be written.
    """
    page = render_lake_page(summary, samples, faulty, tokens=tokens)
    write_page(path, page)


def render_lake_page(
    summary: Summary,
    samples: Sequence[LakeSample],
    faulty: Sequence[LakeSample],
    *,
    tokens: TokenCount | None,
) -> str:
    """The page as text. Everything that comes from data is escaped, and the page forbids scripts and the network."""
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


def _histograms(summary: Summary) -> list[dict[str, Any]]:
    found = []
    for title, bins, limit, spread in (
        ("Words in a caption", summary.words_histogram, None, summary.caption_words),
        ("Tokens in a caption", summary.tokens_histogram, summary.token_limit, summary.caption_tokens),
    ):
        if bins and spread is not None:
            about = f"{spread.min:,} to {spread.max:,}, median {spread.median:,.0f}, mean {spread.mean:,.1f}"
            found.append({"title": title, "about": about, "bars": _bars(bins, limit), "limit": limit})
    return found


def _bars(bins: Sequence[Bin], limit: int | None) -> list[Bar]:
    total, most = sum(one.count for one in bins), max(one.count for one in bins)
    bars = []
    for one in bins:
        span = f"{one.low}" if one.high == one.low else f"{one.low} to {one.high}"
        title = (
            f"{span if one.high is not None else f'{one.low} and more'}: {one.count:,} ({percent(one.count / total)})"
        )
        is_cut = limit is not None and one.low > limit
        bars.append(Bar(f"{one.low}{'+' if one.high is None else ''}", title, one.count / (most or 1), is_cut))
    return bars


def _role(name: str, summary: Summary) -> str:
    if name in summary.label_columns:
        return "labels"
    return {summary.image_column: "images", summary.caption_column: "captions"}.get(name, "")


def _content(name: str, summary: Summary) -> str:
    return summary.contents[name].words if name in summary.contents else ""


def _card(sample: LakeSample, tokens: TokenCount | None) -> Card:
    picture, about = None, ""
    # The header first: a few bytes can claim any size, and what is damaged may still be a picture.
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
    """Where a caption ends for a model that reads so many tokens: the longest beginning that it reads whole."""
    shown = text[:_LONGEST]
    if tokens is None or tokens.count(text) <= tokens.limit:
        return CutText(shown, "", len(text) - len(shown))
    place = bisect.bisect_right(range(len(shown) + 1), tokens.limit, key=lambda end: tokens.count(shown[:end])) - 1
    cut = shown[place : place + _LONGEST_CUT]
    return CutText(shown[:place], cut, len(text) - place - len(cut))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
