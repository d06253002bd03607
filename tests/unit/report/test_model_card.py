"""Model card: its content comes from the run, and text from data does not break its tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from lakeclip.errors import OutputError
from lakeclip.evaluation.forgetting import Forgetting, InterpolationPoint
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import Ranking, RetrievalResult
from lakeclip.evaluation.run import ZeroShotTestResult
from lakeclip.evaluation.zeroshot import ZeroShotResult
from lakeclip.report.data_summary import DataSummary, Unusable
from lakeclip.report.model_card import write_model_card
from lakeclip.report.run_page import RetrievalSection
from lakeclip.report.run_summary import RunSummary, SummaryGroup

SUMMARY = RunSummary("cats-1", "RN50", (SummaryGroup("Data", (("query", "a == 'x' | b"), ("rows", "1,000"))),))


def test_card_describes_the_run(tmp_path: Path) -> None:
    zeroshot = ZeroShotResult(
        ("cat", "dog"), np.array([[3, 1], [0, 4]]), 0.875, 1.0, TemplateSet("simple", "plain", ("{}",))
    )
    ranking = Ranking({1: 0.25, 5: 0.5, 10: 0.75}, 4.0, 0.375)
    card = write_model_card(
        tmp_path,
        SUMMARY,
        zeroshot=[ZeroShotTestResult("Pets", zeroshot)],
        retrieval=RetrievalSection(RetrievalResult(ranking, ranking, 8, 9), "Held out."),
        forgetting=Forgetting("old.lake", 0.9, (InterpolationPoint(0.0, 0.1, 0.9), InterpolationPoint(1.0, 0.5, 0.6))),
    ).read_text()
    for text in (
        "# cats-1",
        "RN50",
        "rows | 1,000",
        "87.5%",
        "R@5 50.0%",
        "90.0% before training, 60.0% after",
        "## Limits",
    ):
        assert text in card, text
    assert "a == 'x' \\| b" in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in tables)


def test_card_without_scores(tmp_path: Path) -> None:
    assert "## Scores\n\nNone.\n" in write_model_card(tmp_path, SUMMARY).read_text()


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_model_card(tmp_path / "missing", SUMMARY)


EVIL = "![x](https://tracker.example/x.png) [click](javascript:alert(1)) <script>alert(1)</script> `code` a|b \\"


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    """Render the card as HTML: text from data gives no image, link or script."""
    unusable = (Unusable(EVIL, 1, (EVIL,)),)
    data = DataSummary(((EVIL, EVIL),), EVIL, 10, 8, 6, 2, None, 12, unusable)
    summary = RunSummary(EVIL, EVIL, (SummaryGroup("Data", (("query", EVIL),)),), data=data)
    card = write_model_card(tmp_path, summary).read_text()
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    assert not re.search(r"<(script|img|a)\b", html)
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == card.count("script>alert")
