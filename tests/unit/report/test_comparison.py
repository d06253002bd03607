"""Comparison of runs: differing settings, caveats, headlines, and the page."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import Ranking, RetrievalResult
from lakeclip.evaluation.zeroshot import ZeroShotResult
from lakeclip.report.charts import MAX_SERIES
from lakeclip.report.comparison import (
    RetrievalScores,
    RunRecord,
    Setting,
    ZeroShotScores,
    caveats,
    compare_with_first,
    differing_settings,
    same_data,
)
from lakeclip.report.comparison_page import render_comparison, summarize_comparison
from lakeclip.report.curves import CLOCK, Curves
from tests.unit.report.test_run_page import EVIL, Page

CURVES: Curves = {
    "train/loss": [(step, 4.0 - step / 50) for step in range(100)],
    "train/samples_per_second": [(step, 9.0 if step == 0 else 100.0) for step in range(100)],
    "val/loss": [(49, 3.0), (79, 2.0), (99, 2.5)],
    "val/image_to_text_R@1": [(49, 0.1), (79, 0.3), (99, 0.4)],
}
LINEAGE: dict[str, Any] = {
    "version": "0.1.0",
    "model": {"name": "ViT-B/32"},
    "data": {"path": "/lakes/x", "version": "1", "query": None, "rows": 1000},
    "config": {
        "data": {"lake": "/lakes/x", "batch_size": 64, "val_fraction": 0.1, "seed": 0},
        "optimizer": {"lr": 5e-4, "betas": (0.9, 0.98)},
        "trainer": {"name": "x", "runs": "runs"},
    },
    "progress": {"step": 100, "samples_seen": 6400, "seconds": 60.0},
}


def record(name: str, curves: Curves = CURVES, **changes: Any) -> RunRecord:
    """Make a run whose lineage differs from the others' by `section__setting=value`."""
    lineage = copy.deepcopy(LINEAGE)
    for path, value in changes.items():
        *sections, last = path.split("__")
        target = lineage
        for section in sections:
            target = target[section]
        target[last] = value
    return RunRecord(name, f"runs/{name}/checkpoints/best.ckpt", lineage, lineage, curves, 1_000_000)


def zero_shot_scores(*num_rights: int, title: str = "pets") -> ZeroShotScores:
    """Make scores of runs that classify their first `num_right` of 200 images correctly."""
    results = []
    for num_right in num_rights:
        first = num_right // 2
        second = num_right - first
        confusion = np.array([[first, 100 - first], [100 - second, second]])
        templates, is_correct = TemplateSet("simple", "", ("{}",)), np.arange(200) < num_right
        results.append(
            ZeroShotResult(("cat", "dog"), confusion, num_right / 200, 1.0, templates, is_correct=is_correct)
        )
    return ZeroShotScores(title, tuple(results), compare_with_first(results))


def test_only_differing_settings_are_listed() -> None:
    runs = [
        record("a"),
        record("b", config__optimizer__lr=1e-3, config__trainer__name="y", config__loss={"objective": "sigmoid"}),
    ]
    assert differing_settings(runs) == [
        Setting("optimizer.lr", ("0.0005", "0.001")),
        Setting("loss.objective", ("–", "sigmoid")),
    ]
    assert differing_settings([runs[0], record("c")]) == []
    other = record("d", data__path="/lakes/y", config__data__lake="/lakes/y")
    assert differing_settings([runs[0], other]) == [Setting("lake", ("/lakes/x", "/lakes/y"))]


def test_caveats_name_metrics_that_are_not_comparable() -> None:
    assert caveats([record("a"), record("b", config__data__seed=7)]) == []
    (rows,) = caveats([record("a"), record("b", config__data__val_fraction=0.2)])
    assert "different rows" in rows
    (losses,) = caveats([record("a"), record("b", config__data__batch_size=128)])
    assert "batch size or objective" in losses
    assert same_data([record("a"), record("b", config__data__batch_size=128)])
    assert not same_data([record("a"), record("b", data__version="2")])


def test_recorded_metrics_are_those_at_the_lowest_loss() -> None:
    run = record("a")
    assert run.recorded == {"step": 79, "val/loss": 2.0, "val/image_to_text_R@1": 0.3}
    assert run.samples_per_second == 100.0
    assert record("b", {}).recorded == {}
    assert record("b", {}).samples_per_second is None


@pytest.mark.parametrize(
    ("num_rights", "headline"),
    [
        ((100, 150), "b is better than a on pets"),
        ((150, 100), "a is better than b on pets"),
        ((100, 102), "a and b do not differ significantly on pets"),
        ((100, 102, 101), "No run differs significantly from a on pets"),
        ((100, 150, 102), "b has the highest top-1 accuracy on pets: 75.0%"),
    ],
)
def test_headline_claims_no_more_than_the_significance_test(num_rights: tuple[int, ...], headline: str) -> None:
    runs = [record(name) for name in "abc"[: len(num_rights)]]
    title, text = summarize_comparison(runs, zero_shot_scores(*num_rights))
    assert title == headline
    assert "another seed" in text


def test_without_scores_the_lowest_loss_is_named_if_losses_are_comparable() -> None:
    better: Curves = CURVES | {"val/loss": [(99, 1.5)]}
    assert (
        "b reached the lowest validation loss, 1.5" in summarize_comparison([record("a"), record("b", better)], None)[1]
    )
    assert summarize_comparison([record("a"), record("b", better, config__data__batch_size=128)], None)[1] == ""


def test_page_with_all_sections() -> None:
    timed: Curves = CURVES | {CLOCK: [(step, 9.0 * step) for step in range(100)]}
    ranking = Ranking({1: 0.5, 5: 0.75, 10: 1.0}, 2.0, 0.6)
    retrieval = RetrievalScores("Held out.", (RetrievalResult(ranking, ranking, 60, 120),) * 2)
    runs = [record("a", timed), record("b", config__optimizer__lr=1e-3)]
    text = render_comparison(runs, zeroshot=zero_shot_scores(100, 150), retrieval=retrieval)
    page = Page(text)
    assert "▲ betterp < 0.0001" in page.text.replace(" p <", "p <")
    assert "+25.0" in page.text
    assert "optimizer.lr 0.0005 0.001" in page.text
    assert "37.7 – 62.3" in page.text, "the interval of 50% of 60 images"
    assert "Without wall-clock time, which these runs did not record: b" in page.text
    switch = [value for tag, name, value in page.attributes if (tag, name) == ("input", "id")]
    assert switch == ["over-steps", "over-pairs", "over-time"]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_page_loads_nothing_runs_nothing_and_escapes_everything() -> None:
    runs = [record(EVIL), record(EVIL + "2", data__path=EVIL, config__data__seed=EVIL)]
    text = render_comparison(runs, zeroshot=zero_shot_scores(100, 150, title=EVIL))
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert EVIL in page.text


def test_lines_of_the_maximum_number_of_runs_are_distinguishable() -> None:
    runs = [record(f"run-{number}", {**CURVES, CLOCK: [(0, 0.0), (99, 500.0)]}) for number in range(MAX_SERIES)]
    text = render_comparison(runs)
    assert all(f"--series-{number}: #" in text for number in range(1, MAX_SERIES + 1))
    styles = {
        (value, previous)
        for (_, previous_name, previous), (tag, name, value) in zip(
            Page(text).attributes, Page(text).attributes[1:], strict=False
        )
        if tag == "i" and name == "style" and previous_name == "class"
    }
    assert len(styles) == MAX_SERIES


def test_runs_without_curves_are_compared(tmp_path: Path) -> None:
    page = Page(render_comparison([record("a", {}), record("b", {})]))
    assert "Training" not in page.text
    assert "None: the runs have the same settings" in page.text
