"""report.html: one page, whole in itself, from which someone can decide whether a model is good enough."""

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

from lakeclip.evaluation.embedding_map import EmbeddingMap
from lakeclip.evaluation.forgetting import Forgetting
from lakeclip.evaluation.pages.account import DataAccount
from lakeclip.evaluation.pages.charts import draw_charts, draw_forgetting
from lakeclip.evaluation.pages.facts import RunFacts
from lakeclip.evaluation.pages.gallery import Gallery
from lakeclip.evaluation.pages.history import Curves, axes_of
from lakeclip.evaluation.pages.page import page_template, write_page
from lakeclip.evaluation.retrieval import RetrievalResult
from lakeclip.evaluation.zeroshot import ZeroShotResult

FILE_NAME = "report.html"

#: With more classes the matrix is a picture without names.
_MAX_NAMED_CELLS = 24
#: With more classes the easier ones are folded away.
_MAX_OPEN_CLASSES = 24

#: Of the heat map for many classes; readable on light and dark.
_RIGHT, _WRONG = (70, 120, 240), (230, 110, 30)


@dataclass(frozen=True)
class ZeroShotSection:
    """A zero-shot result with what to call it, and what it says about the model in a sentence or two."""

    title: str
    result: ZeroShotResult
    about: str = ""


@dataclass(frozen=True)
class RetrievalSection:
    """A retrieval result, and on which rows it was found."""

    result: RetrievalResult
    about: str = ""


def write_report(
    run: Path,
    *,
    facts: RunFacts,
    curves: Curves,
    zeroshot: Sequence[ZeroShotSection] = (),
    retrieval: RetrievalSection | None = None,
    gallery: Gallery | None = None,
    embeddings: EmbeddingMap | None = None,
    forgetting: Forgetting | None = None,
) -> Path:
    """Write report.html into a run's folder. What is not given is left out of the page.

    Args:
        curves: of the run's metrics.csv; see `read_curves`.
        zeroshot: the first is the headline.

    Returns:
        The page.

    Raises:
        OutputError: the folder cannot be written.
    """
    page = render_report(
        facts=facts,
        curves=curves,
        zeroshot=zeroshot,
        retrieval=retrieval,
        gallery=gallery,
        embeddings=embeddings,
        forgetting=forgetting,
    )
    return write_page(run / FILE_NAME, page)


def render_report(
    *,
    facts: RunFacts,
    curves: Curves,
    zeroshot: Sequence[ZeroShotSection],
    retrieval: RetrievalSection | None,
    gallery: Gallery | None,
    embeddings: EmbeddingMap | None = None,
    forgetting: Forgetting | None = None,
) -> str:
    """The page as text. Everything that comes from data is escaped, and the page forbids scripts and the network."""
    headline, verdict = _headline(facts, zeroshot, retrieval)
    return page_template("report.html.jinja").render(
        title=f"{facts.name}: {headline}",
        headline=headline,
        verdict_text=verdict,
        facts=facts,
        zeroshot=zeroshot,
        retrieval=retrieval,
        charts=draw_charts(curves) + ([draw_forgetting(forgetting)] if forgetting else []),
        axes=[axis for axis, _ in axes_of(curves)],
        confusions=[_confusion_view(section) for section in zeroshot],
        gallery=gallery,
        map=embeddings,
        **_map_box(embeddings),
        bars=_bars(facts.account) if facts.account else [],
        version=version("lakeclip"),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _map_box(embeddings: EmbeddingMap | None) -> dict[str, float]:
    """Height of the map and what is left free above it, with a width of 1,000."""
    heights = [dot.y for dot in embeddings.dots] if embeddings else [0.0]
    return {"map_top": 1000 * min(heights), "map_height": 1000 * (max(heights) - min(heights))}


class _Bar(NamedTuple):
    """A number of rows as a share of all."""

    label: str
    rows: int
    share: float
    is_bad: bool = False


def _bars(account: DataAccount) -> list[_Bar]:
    """Where the rows went, from all of them down; nothing where the account has no figures."""
    rows = [
        ("in the lakes" if len(account.lakes) > 1 else "in the lake", account.total_rows),
        ("kept by the query", account.kept_rows if account.query else None),
        # Those whose addresses are still to be downloaded, and those marked as unusable, are not read at all.
        ("with an image", account.kept_rows if not account.query and account.total_rows != account.kept_rows else None),
        ("trained on", account.train_rows),
        ("held out for validation", account.held_out_rows),
    ]
    known = [(label, number) for label, number in rows if number]
    if account.train_rows is None or not known:
        return []
    whole = known[0][1]
    bars = [_Bar(label, number, number / whole) for label, number in known]
    bad = account.num_unusable
    return [*bars, _Bar("could not be used", bad, min(1.0, bad / whole), is_bad=True)]


def _headline(
    facts: RunFacts, zeroshot: Sequence[ZeroShotSection], retrieval: RetrievalSection | None
) -> tuple[str, str]:
    if zeroshot:
        section, result = zeroshot[0], zeroshot[0].result
        low, _ = result.interval
        headline = f"{section.title}: {100 * result.top1:.1f}%, {result.top1 / result.chance:.1f}× chance"
        verdict = (
            f"Shown {result.num_samples:,} pictures it was never given labels for, the model picks the right one of "
            f"{len(result.classes)} names for {100 * result.top1:.1f}% of them. Guessing would get "
            f"{100 * result.chance:.1f}%."
        )
        if low <= result.chance:
            verdict += " That is not distinguishable from guessing."
        return headline, verdict
    if retrieval:
        recall = retrieval.result.text_to_image.recall
        return (
            f"Finds the right image first for {100 * recall[1]:.1f}% of captions",
            f"Among {retrieval.result.num_images:,} images; within the first five for {100 * recall[5]:.1f}%.",
        )
    return f"{facts.model}, trained", ""


def _confusion_view(section: ZeroShotSection) -> dict[str, Any]:
    """One confusion matrix as the template wants it."""
    result = section.result
    counts = result.confusion
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    named = len(result.classes) <= _MAX_NAMED_CELLS
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
        "cells": _cells(result, shares) if named else None,
        # Beside the list of mistakes there is room for ten names; more get the width of the page.
        "is_small": len(result.classes) <= 10 or not named,
        "cell_size": 40 if len(result.classes) <= 10 else 32,
        "image": b"" if named else _heat_map(shares),
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
            css = ("own " if i == j else "") + ("deep" if share > 0.5 else "")
            title = f"{true} called {predicted}: {count} of {result.confusion[i].sum()}"
            text = f"{100 * share:.0f}" if count else ""
            row.append({"share": share, "css": css.strip(), "title": title, "text": text})
        cells.append(row)
    return cells


def _heat_map(shares: NDArray[np.float64]) -> bytes:
    """A PNG with a pixel a cell, transparent where nothing falls."""
    own = np.eye(len(shares), dtype=bool)
    colours = np.where(own[:, :, None], np.array(_RIGHT), np.array(_WRONG))
    # The square root, so that the rare mistakes are seen.
    opacity = (255 * np.sqrt(shares))[:, :, None]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([colours, opacity], axis=2).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
