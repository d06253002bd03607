"""report.html of a run: a self-contained page that shows how good its model is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lakeclip.evaluation.forgetting import Forgetting
from lakeclip.evaluation.retrieval import RetrievalResult
from lakeclip.evaluation.run import ZeroShotTestResult
from lakeclip.evaluation.zeroshot import ZeroShotResult
from lakeclip.report.charts import draw_charts, draw_forgetting
from lakeclip.report.curves import Curves, axes_of
from lakeclip.report.data_summary import DataSummary
from lakeclip.report.embedding_map import EmbeddingMap
from lakeclip.report.gallery import Gallery
from lakeclip.report.page import page_template, write_page
from lakeclip.report.run_summary import RunSummary
from lakeclip.report.verdict import RunVerdict

FILE_NAME = "report.html"

#: With more classes the confusion matrix is an image without names.
_MAX_NAMED_CLASSES = 24
#: With more classes the easier ones are collapsed.
_MAX_OPEN_CLASSES = 24

#: Colours of the heat map for many classes; readable on light and dark pages.
_RIGHT, _WRONG = (70, 120, 240), (230, 110, 30)


@dataclass(frozen=True)
class RetrievalSection:
    """A retrieval result, with a sentence that names its rows."""

    result: RetrievalResult
    about: str = ""


def write_report(
    run: Path,
    *,
    summary: RunSummary,
    curves: Curves,
    zeroshot: Sequence[ZeroShotTestResult] = (),
    retrieval: RetrievalSection | None = None,
    gallery: Gallery | None = None,
    embeddings: EmbeddingMap | None = None,
    forgetting: Forgetting | None = None,
    verdict: RunVerdict | None = None,
) -> Path:
    """Write report.html into a run's folder. The page omits what is not given.

    Args:
        curves: curves in the run's metrics.csv; see `read_curves`.
        zeroshot: the first result is the headline.
        verdict: replaces the headline of a model that does no better than guessing.

    Returns:
        The path of the page.

    Raises:
        OutputError: the folder cannot be written.
    """
    page = render_report(
        summary=summary,
        curves=curves,
        zeroshot=zeroshot,
        retrieval=retrieval,
        gallery=gallery,
        embeddings=embeddings,
        forgetting=forgetting,
        verdict=verdict,
    )
    return write_page(run / FILE_NAME, page)


def render_report(
    *,
    summary: RunSummary,
    curves: Curves,
    zeroshot: Sequence[ZeroShotTestResult],
    retrieval: RetrievalSection | None,
    gallery: Gallery | None,
    embeddings: EmbeddingMap | None = None,
    forgetting: Forgetting | None = None,
    verdict: RunVerdict | None = None,
) -> str:
    """Render the page. All text from data is escaped, and the page forbids scripts and network access."""
    headline, lead = _headline(summary, zeroshot, retrieval, verdict)
    return page_template("report.html.jinja").render(
        title=f"{summary.name}: {headline}",
        headline=headline,
        lead=lead,
        summary=summary,
        zeroshot=zeroshot,
        retrieval=retrieval,
        charts=draw_charts(curves) + ([draw_forgetting(forgetting)] if forgetting else []),
        axes=[axis for axis, _ in axes_of(curves)],
        confusions=[_confusion_view(section) for section in zeroshot],
        gallery=gallery,
        map=embeddings,
        **_map_size(embeddings),
        bars=_bars(summary.data) if summary.data else [],
        version=version("lakeclip"),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _map_size(embeddings: EmbeddingMap | None) -> dict[str, float]:
    """Return the top and the height of the map for a width of 1,000."""
    heights = [dot.y for dot in embeddings.dots] if embeddings else [0.0]
    return {"map_top": 1000 * min(heights), "map_height": 1000 * (max(heights) - min(heights))}


class _Bar(NamedTuple):
    """A bar: a number of rows, and its share of all rows."""

    label: str
    rows: int
    share: float
    is_bad: bool = False


def _bars(data: DataSummary) -> list[_Bar]:
    """List the numbers of rows from all rows to those trained on; empty if they were not recorded."""
    rows = [
        ("in the lakes" if len(data.lakes) > 1 else "in the lake", data.total_rows),
        ("kept by the query", data.kept_rows if data.query else None),
        # Rows whose images are not downloaded yet, and rows marked as unusable, are not read at all.
        ("with an image", data.kept_rows if not data.query and data.total_rows != data.kept_rows else None),
        ("trained on", data.train_rows),
        ("held out for validation", data.held_out_rows),
    ]
    known = [(label, number) for label, number in rows if number]
    if data.train_rows is None or not known:
        return []
    total = known[0][1]
    bars = [_Bar(label, number, number / total) for label, number in known]
    num_unusable = data.num_unusable
    return [*bars, _Bar("unusable", num_unusable, min(1.0, num_unusable / total), is_bad=True)]


def _headline(
    summary: RunSummary,
    zeroshot: Sequence[ZeroShotTestResult],
    retrieval: RetrievalSection | None,
    verdict: RunVerdict | None,
) -> tuple[str, str]:
    if verdict:
        what = verdict.what[:1].upper() + verdict.what[1:]
        return f"{verdict.headline}: {summary.model}", f"{what}. What to do: {verdict.advice}."
    if zeroshot:
        section, result = zeroshot[0], zeroshot[0].result
        headline = f"{section.title}: {100 * result.top1:.1f}%, {result.top1 / result.chance:.1f}× chance"
        lead = (
            f"Without training on labels, the model assigns the correct one of {len(result.classes)} classes to "
            f"{100 * result.top1:.1f}% of {result.num_samples:,} images. Random guessing would reach "
            f"{100 * result.chance:.1f}%."
        )
        if result.standing.is_guessing:
            lead += " This does not differ significantly from guessing."
        return headline, lead
    if retrieval:
        recall, standing = retrieval.result.text_to_image.recall, retrieval.result.text_to_image.standing()
        return (
            f"Text → image retrieval: {100 * recall[1]:.1f}% R@1"
            + (f", {standing.times_chance:.1f}× chance" if standing.chance else ""),
            f"For {100 * recall[1]:.1f}% of the captions the correct image ranks first among "
            f"{retrieval.result.num_images:,} images; for {100 * recall[5]:.1f}% it is among the first five.",
        )
    return f"Trained {summary.model}", ""


def _confusion_view(section: ZeroShotTestResult) -> dict[str, Any]:
    """Prepare a confusion matrix for the template."""
    result = section.result
    counts = result.confusion
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    is_named = len(result.classes) <= _MAX_NAMED_CLASSES
    rows = []
    for i, score in enumerate(result.per_class):
        others = np.where(np.arange(len(counts)) == i, 0, counts[i])
        worst = int(others.argmax())
        rows.append(
            {
                "name": score.name,
                "num_samples": score.num_samples,
                "accuracy": score.accuracy,
                "precision": score.precision,
                "mistaken_for": result.classes[worst] if others[worst] else "",
                "mistaken_count": int(others[worst]),
            }
        )
    rows.sort(key=lambda row: (row["accuracy"] is None, row["accuracy"]))
    split = len(rows) if len(rows) <= _MAX_OPEN_CLASSES else 15
    total_of = dict(zip(result.classes, totals.tolist(), strict=True))
    return {
        "title": section.title,
        "names": result.classes,
        "cells": _cells(result, shares) if is_named else None,
        # Up to ten names fit beside the list of mistakes; more need the full width of the page.
        "is_small": len(result.classes) <= 10 or not is_named,
        "cell_size": 40 if len(result.classes) <= 10 else 32,
        "image": b"" if is_named else _heat_map(shares),
        "mistakes": [
            {"true": true, "predicted": predicted, "count": count, "num_samples": total_of[true]}
            for true, predicted, count in result.confusions()
        ],
        "templates": result.templates.templates,
        "template_name": result.templates.name,
        "hardest": rows[:split],
        "others": rows[split:],
    }


def _cells(result: ZeroShotResult, shares: NDArray[np.float64]) -> list[list[dict[str, Any]]]:
    cells = []
    for i, true in enumerate(result.classes):
        row = []
        for j, predicted in enumerate(result.classes):
            share, count = float(shares[i, j]), int(result.confusion[i, j])
            css = ("diagonal " if i == j else "") + ("deep" if share > 0.5 else "")
            title = f"{true} predicted as {predicted}: {count} of {result.confusion[i].sum()}"
            text = f"{100 * share:.0f}" if count else ""
            row.append({"share": share, "css": css.strip(), "title": title, "text": text})
        cells.append(row)
    return cells


def _heat_map(shares: NDArray[np.float64]) -> bytes:
    """Draw the matrix as a PNG with one pixel per cell, transparent where it is zero."""
    is_diagonal = np.eye(len(shares), dtype=bool)
    colours = np.where(is_diagonal[:, :, None], np.array(_RIGHT), np.array(_WRONG))
    # The square root makes rare mistakes visible.
    opacity = (255 * np.sqrt(shares))[:, :, None]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([colours, opacity], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
