"""Runs side by side as one page, whole in itself, from which someone can decide which one to keep."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

from lakeclip.evaluation.comparison import (
    RetrievalScores,
    RunRecord,
    ZeroShotScores,
    caveats,
    differing_settings,
)
from lakeclip.evaluation.pages.charts import Chart, Line, Panel, draw_panels
from lakeclip.evaluation.pages.facts import duration
from lakeclip.evaluation.pages.history import CLOCK, PAIRS, STEPS, Axis, Curves, over_pairs, over_time, time_axis
from lakeclip.evaluation.pages.page import page_template
from lakeclip.evaluation.retrieval import CUTOFFS
from lakeclip.evaluation.significance import Difference, share_interval

#: Lines of one colour would be hard to follow; from here on they are dashed, too.
_SOLID = 5
#: The classes that the runs differ in most; the others are folded away.
_MAX_OPEN_CLASSES = 12

#: (metric, title, of shares, small, noisy)
_PANELS = (
    ("val/loss", "Validation loss", False, False, False),
    ("train/loss", "Training loss", False, False, True),
    ("val/image_to_text_R@1", "Validation: the right caption first", True, False, False),
    ("val/text_to_image_R@1", "Validation: the right image first", True, False, False),
    ("train/lr", "Learning rate", False, True, False),
    ("train/logit_scale", "Inverse temperature", False, True, False),
    ("train/samples_per_second", "Samples per second", False, True, True),
)


def render_comparison(
    runs: Sequence[RunRecord], *, zeroshot: ZeroShotScores | None = None, retrieval: RetrievalScores | None = None
) -> str:
    """The page as text. Everything that comes from data is escaped, and the page forbids scripts and the network.

    Args:
        runs: at least two, and no more than the page has colours; the first is the one to measure by.
    """
    axes = _axes(runs)
    headline, verdict = verdict_of(runs, zeroshot)
    settings = differing_settings(runs)
    return page_template("comparison.html.jinja").render(
        title=headline,
        headline=headline,
        verdict_text=verdict,
        runs=[_run_view(run) for run in runs],
        dashed=[number > _SOLID for number in range(1, len(runs) + 1)],
        caveats=caveats(runs),
        zeroshot=zeroshot,
        against=[None, *(zeroshot.differences if zeroshot else [])],
        classes=_class_rows(zeroshot) if zeroshot else [],
        max_open_classes=_MAX_OPEN_CLASSES,
        retrieval=_retrieval_view(retrieval) if retrieval else None,
        charts=_charts(runs, axes),
        axes=[axis for axis, _ in axes],
        untimed=[run.name for run in runs if run.curves and CLOCK not in run.curves],
        settings=settings,
        num_same=len({name for run in runs for name in run.settings} - {setting.name for setting in settings}),
        p_text=p_text,
        version=version("lakeclip"),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def verdict_of(runs: Sequence[RunRecord], zeroshot: ZeroShotScores | None) -> tuple[str, str]:
    """What to take home: a headline, and a sentence or two."""
    if zeroshot is None:
        names = f"{len(runs)} runs"
        if len(runs) <= 3:
            names = ", ".join(run.name for run in runs[:-1]) + f" and {runs[-1].name}"
        known = [(run.recorded["val/loss"], run) for run in runs if "val/loss" in run.recorded]
        if len(known) < 2 or caveats(runs):
            return f"{names} side by side", ""
        loss, best = min(known, key=lambda pair: pair[0])
        return (
            f"{names} side by side",
            f"{best.name} reached the lowest validation loss, {loss:.3g}. One run each does not say whether another "
            "seed would have done the same.",
        )
    shares = [result.top1 for result in zeroshot.results]
    if len(runs) == 2:
        (difference,) = zeroshot.differences
        if difference.verdict == "not told apart":
            headline = f"{runs[0].name} and {runs[1].name} cannot be told apart on {zeroshot.title}"
        else:
            better, other = (1, 0) if difference.verdict == "better" else (0, 1)
            headline = f"{runs[better].name} is better than {runs[other].name} on {zeroshot.title}"
        return headline, f"{describe(difference, runs[1].name, runs[0].name)} {_REPEATED}"
    if all(difference.verdict == "not told apart" for difference in zeroshot.differences):
        return f"None of the others can be told apart from {runs[0].name} on {zeroshot.title}", _REPEATED
    most = max(range(len(runs)), key=shares.__getitem__)
    verdicts = "; ".join(
        f"{run.name} is {difference.verdict if difference.verdict != 'not told apart' else 'not told apart from it'}"
        for run, difference in zip(runs[1:], zeroshot.differences, strict=True)
    )
    return (
        f"{runs[most].name} names most of {zeroshot.title} right: {shares[most]:.1%}",
        f"Compared with {runs[0].name}: {verdicts}. {_REPEATED}",
    )


_REPEATED = "This is said of these weights on these images, not of the recipes: another seed is another run."


def describe(difference: Difference, name: str, first: str) -> str:
    """A difference in a sentence."""
    if not difference.only_first + difference.only_second:
        return f"{name} and {first} name the same images right."
    low, high = difference.interval
    way = "more" if difference.share >= 0 else "fewer"
    return (
        f"{name} names {abs(100 * difference.share):.1f} points {way} right than {first} "
        f"(95% between {100 * low:+.1f} and {100 * high:+.1f}): {difference.only_second:,} images that {first} does "
        f"not, against {difference.only_first:,} the other way round; p {p_text(difference.p_value)}."
    )


def p_text(p_value: float) -> str:
    """A p-value as it is said: `= 0.03`, `< 0.0001`."""
    return "< 0.0001" if p_value < 1e-4 else f"= {p_value:.2g}"


def _run_view(run: RunRecord) -> dict[str, Any]:
    data, progress = run.lineage["data"], run.lineage["progress"]
    rows = data.get("train_rows") or data["rows"]
    return {
        "name": run.name,
        "checkpoint": run.checkpoint,
        "model": run.model,
        "parameters": f"{run.num_parameters / 1e6:,.1f} M",
        "steps": f"{run.steps:,}",
        "scored_step": progress["step"] if progress["step"] != run.steps else None,
        "pairs": f"{run.samples_seen:,}",
        "passes": f"{run.samples_seen / rows:.3g}" if rows else "",
        "time": duration(run.seconds) if run.seconds else "–",
        "speed": f"{run.samples_per_second:,.0f}" if run.samples_per_second else "–",
        "recorded": run.recorded,
    }


def _axes(runs: Sequence[RunRecord]) -> list[tuple[Axis, Curves]]:
    """The curves of all runs, each under its number and its metric, over every axis."""
    longest = max((run.curves[CLOCK][-1][1] for run in runs if CLOCK in run.curves), default=0.0)
    timed, unit = time_axis(longest)
    views: dict[Axis, Curves] = {STEPS: {}, PAIRS: {}}
    if longest:
        views[timed] = {}
    for number, run in enumerate(runs):
        own = {STEPS: run.curves, timed: over_time(run.curves, unit)}
        own[PAIRS] = over_pairs(run.curves, run.samples_seen / run.steps) if run.steps else {}
        for axis, view in views.items():
            view |= {f"{number}:{name}": points for name, points in own[axis].items()}
    return list(views.items())


def _charts(runs: Sequence[RunRecord], axes: Sequence[tuple[Axis, Curves]]) -> list[Chart]:
    panels = [
        Panel(
            title,
            tuple(
                Line(
                    f"{number}:{metric}",
                    run.name,
                    number + 1,
                    is_dashed=number >= _SOLID,
                    is_noisy=is_noisy,
                    is_one_of_many=True,
                )
                for number, run in enumerate(runs)
            ),
            is_share=is_share,
            is_minor=is_minor,
        )
        for metric, title, is_share, is_minor, is_noisy in _PANELS
    ]
    return draw_panels(panels, axes)


def _class_rows(scores: ZeroShotScores) -> list[dict[str, Any]]:
    """Every class with its accuracy in each run; those that the runs differ in most come first."""
    rows = []
    for own in zip(*(result.per_class for result in scores.results), strict=True):
        shares = [score.accuracy for score in own]
        known = [share for share in shares if share is not None]
        spread = max(known) - min(known) if known else -1.0
        rows.append({"name": own[0].name, "num_samples": own[0].num_samples, "shares": shares, "spread": spread})
    return sorted(rows, key=lambda row: -row["spread"])


def _retrieval_view(scores: RetrievalScores) -> dict[str, Any]:
    """Each run's shares with their intervals: (run) → (way, cutoff) → share, low, high."""
    first = scores.results[0]
    rows = []
    for result in scores.results:
        cells = []
        for ranking in (result.image_to_text, result.text_to_image):
            for k in CUTOFFS:
                # An image's captions are found or missed together: it is the images that are independent.
                cells.append((ranking.recall[k], *share_interval(ranking.recall[k], result.num_images)))
        medians = (result.image_to_text.median_rank, result.text_to_image.median_rank)
        rows.append({"cells": cells, "medians": medians})
    return {
        "about": scores.about,
        "rows": rows,
        "cutoffs": CUTOFFS,
        "num_images": first.num_images,
        "num_texts": first.num_texts,
    }
