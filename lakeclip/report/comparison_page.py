"""Self-contained HTML page that compares runs, to decide which one to keep."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

from lakeclip.evaluation.retrieval import CUTOFFS
from lakeclip.evaluation.significance import Difference, wilson_interval
from lakeclip.report.charts import Chart, Line, Panel, draw_panels
from lakeclip.report.comparison import RetrievalScores, RunRecord, ZeroShotScores, caveats, differing_settings
from lakeclip.report.curves import CLOCK, PAIRS, STEPS, Axis, Curves, over_pairs, over_time, time_axis
from lakeclip.report.page import page_template
from lakeclip.report.run_summary import duration

#: Number of solid lines; further ones are dashed, as colours alone would be hard to distinguish.
_NUM_SOLID = 5
#: Classes in which the runs differ most; the others are collapsed.
_MAX_OPEN_CLASSES = 12

#: (metric, title, is_share, is_minor, is_noisy)
_PANELS = (
    ("val/loss", "Validation loss", False, False, False),
    ("train/loss", "Training loss", False, False, True),
    ("val/image_to_text_R@1", "Validation: image → text, R@1", True, False, False),
    ("val/text_to_image_R@1", "Validation: text → image, R@1", True, False, False),
    ("train/lr", "Learning rate", False, True, False),
    ("train/logit_scale", "Inverse temperature", False, True, False),
    ("train/samples_per_second", "Samples per second", False, True, True),
)


def render_comparison(
    runs: Sequence[RunRecord], *, zeroshot: ZeroShotScores | None = None, retrieval: RetrievalScores | None = None
) -> str:
    """Render the page. All text from data is escaped, and the page forbids scripts and network access.

    Args:
        runs: from two to `MAX_SERIES`; the others are compared with the first.
    """
    axes = _axes(runs)
    headline, summary = summarize_comparison(runs, zeroshot)
    settings = differing_settings(runs)
    return page_template("comparison.html.jinja").render(
        title=headline,
        headline=headline,
        summary=summary,
        runs=[_run_view(run) for run in runs],
        dashed=[number > _NUM_SOLID for number in range(1, len(runs) + 1)],
        caveats=caveats(runs),
        zeroshot=zeroshot,
        differences=[None, *(zeroshot.differences if zeroshot else [])],
        classes=_class_rows(zeroshot) if zeroshot else [],
        max_open_classes=_MAX_OPEN_CLASSES,
        retrieval=_retrieval_view(retrieval) if retrieval else None,
        charts=_charts(runs, axes),
        axes=[axis for axis, _ in axes],
        untimed=[run.name for run in runs if run.curves and CLOCK not in run.curves],
        settings=settings,
        num_same=len({name for run in runs for name in run.settings} - {setting.name for setting in settings}),
        p_text=p_text,
        verdict_text=verdict_text,
        version=version("lakeclip"),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def summarize_comparison(runs: Sequence[RunRecord], zeroshot: ZeroShotScores | None) -> tuple[str, str]:
    """Return a headline, and a sentence or two of explanation."""
    if zeroshot is None:
        names = f"{len(runs)} runs"
        if len(runs) <= 3:
            names = ", ".join(run.name for run in runs[:-1]) + f" and {runs[-1].name}"
        losses = [(run.recorded["val/loss"], run) for run in runs if "val/loss" in run.recorded]
        if len(losses) < 2 or caveats(runs):
            return f"{names} side by side", ""
        loss, best = min(losses, key=lambda pair: pair[0])
        return (
            f"{names} side by side",
            f"{best.name} reached the lowest validation loss, {loss:.3g}. A single run of each does not show "
            "whether this holds for other seeds.",
        )
    shares = [result.top1 for result in zeroshot.results]
    if len(runs) == 2:
        (difference,) = zeroshot.differences
        if difference.verdict == "not told apart":
            headline = f"{runs[0].name} and {runs[1].name} do not differ significantly on {zeroshot.title}"
        else:
            better, other = (1, 0) if difference.verdict == "better" else (0, 1)
            headline = f"{runs[better].name} is better than {runs[other].name} on {zeroshot.title}"
        return headline, f"{describe(difference, runs[1].name, runs[0].name)} {_SCOPE}"
    if all(difference.verdict == "not told apart" for difference in zeroshot.differences):
        return f"No run differs significantly from {runs[0].name} on {zeroshot.title}", _SCOPE
    most = max(range(len(runs)), key=shares.__getitem__)
    verdicts = "; ".join(
        f"{run.name} is {verdict_text(difference)}"
        for run, difference in zip(runs[1:], zeroshot.differences, strict=True)
    )
    return (
        f"{runs[most].name} has the highest top-1 accuracy on {zeroshot.title}: {shares[most]:.1%}",
        f"Compared with {runs[0].name}: {verdicts}. {_SCOPE}",
    )


_SCOPE = "This holds for these weights on these images, not for the recipes: another seed gives other weights."


def describe(difference: Difference, name: str, first: str) -> str:
    """Describe a difference in a sentence."""
    if not difference.only_first + difference.only_second:
        return f"{name} and {first} classify the same images correctly."
    low, high = difference.interval
    way = "more" if difference.share >= 0 else "less"
    return (
        f"{name} is {abs(100 * difference.share):.1f} points {way} accurate than {first} "
        f"(95% interval {100 * low:+.1f} to {100 * high:+.1f}): {difference.only_second:,} images are correct only "
        f"with {name}, {difference.only_first:,} only with {first}; p {p_text(difference.p_value)}."
    )


def p_text(p_value: float) -> str:
    """Format a p-value: `= 0.03`, `< 0.0001`."""
    return "< 0.0001" if p_value < 1e-4 else f"= {p_value:.2g}"


def verdict_text(difference: Difference) -> str:
    """Return the verdict for a page or a table: better, worse, or not significantly different."""
    return "not significantly different" if difference.verdict == "not told apart" else difference.verdict


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
    """Return the curves of all runs over every axis, with names of the form "number:metric"."""
    longest = max((run.curves[CLOCK][-1][1] for run in runs if CLOCK in run.curves), default=0.0)
    wall_clock, unit = time_axis(longest)
    views: dict[Axis, Curves] = {STEPS: {}, PAIRS: {}}
    if longest:
        views[wall_clock] = {}
    for number, run in enumerate(runs):
        curves = {STEPS: run.curves, wall_clock: over_time(run.curves, unit)}
        curves[PAIRS] = over_pairs(run.curves, run.samples_seen / run.steps) if run.steps else {}
        for axis, view in views.items():
            view |= {f"{number}:{name}": points for name, points in curves[axis].items()}
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
                    is_dashed=number >= _NUM_SOLID,
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
    """List every class with its accuracy in each run, in descending order of the differences between runs."""
    rows = []
    for class_scores in zip(*(result.per_class for result in scores.results), strict=True):
        shares = [score.accuracy for score in class_scores]
        known = [share for share in shares if share is not None]
        spread = max(known) - min(known) if known else -1.0
        first = class_scores[0]
        rows.append({"name": first.name, "num_samples": first.num_samples, "shares": shares, "spread": spread})
    return sorted(rows, key=lambda row: -row["spread"])


def _retrieval_view(scores: RetrievalScores) -> dict[str, Any]:
    """List each run's recalls with their intervals: one (share, low, high) per direction and cutoff."""
    first = scores.results[0]
    rows = []
    for result in scores.results:
        cells = []
        for ranking in (result.image_to_text, result.text_to_image):
            for k in CUTOFFS:
                # Captions of the same image are not independent samples, so the interval counts images.
                cells.append((ranking.recall[k], *wilson_interval(ranking.recall[k], result.num_images)))
        medians = (result.image_to_text.median_rank, result.text_to_image.median_rank)
        rows.append({"cells": cells, "medians": medians})
    return {
        "about": scores.about,
        "rows": rows,
        "cutoffs": CUTOFFS,
        "num_images": first.num_images,
        "num_texts": first.num_texts,
    }
