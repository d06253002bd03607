"""The model card: what it says comes from the run, and nothing in it breaks its tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from lakeclip.errors import OutputError
from lakeclip.evaluation.forgetting import Forgetting, Mix
from lakeclip.evaluation.pages.account import DataAccount, Unusable
from lakeclip.evaluation.pages.card import write_card
from lakeclip.evaluation.pages.facts import FactGroup, RunFacts
from lakeclip.evaluation.pages.report import RetrievalSection, ZeroShotSection
from lakeclip.evaluation.prompts import TemplateSet
from lakeclip.evaluation.retrieval import Ranking, RetrievalResult
from lakeclip.evaluation.zeroshot import ZeroShotResult

FACTS = RunFacts("cats-1", "RN50", (FactGroup("Data", (("query", "a == 'x' | b"), ("rows", "1,000"))),))


def test_it_says_what_the_run_was(tmp_path: Path) -> None:
    zeroshot = ZeroShotResult(
        ("cat", "dog"), np.array([[3, 1], [0, 4]]), 0.875, 1.0, TemplateSet("simple", "plain", ("{}",))
    )
    ranking = Ranking({1: 0.25, 5: 0.5, 10: 0.75}, 4.0, 0.375)
    card = write_card(
        tmp_path,
        FACTS,
        zeroshot=[ZeroShotSection("Pets", zeroshot)],
        retrieval=RetrievalSection(RetrievalResult(ranking, ranking, 8, 9), "Held out."),
        forgetting=Forgetting("old.lake", 0.9, (Mix(0.0, 0.1, 0.9), Mix(1.0, 0.5, 0.6))),
    ).read_text()
    for words in (
        "# cats-1",
        "RN50",
        "rows | 1,000",
        "87.5%",
        "R@5 50.0%",
        "90.0% before training, 60.0% after",
        "## Limits",
    ):
        assert words in card, words
    assert "a == 'x' \\| b" in card
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in tables)


def test_a_run_without_scores_says_so(tmp_path: Path) -> None:
    assert "None were taken." in write_card(tmp_path, FACTS).read_text()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_card(tmp_path / "missing", FACTS)


EVIL = "![x](https://tracker.example/x.png) [click](javascript:alert(1)) <script>alert(1)</script> `code` a|b \\"


def test_whatever_comes_from_data_is_words(tmp_path: Path) -> None:
    """Whoever shows the card as a page shows no picture, link or script of a caption's."""
    unusable = (Unusable(EVIL, 1, (EVIL,)),)
    account = DataAccount(((EVIL, EVIL),), EVIL, 10, 8, 6, 2, None, 12, unusable)
    facts = RunFacts(EVIL, EVIL, (FactGroup("Data", (("query", EVIL),)),), account=account)
    card = write_card(tmp_path, facts).read_text()
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    assert not re.search(r"<(script|img|a)\b", html)
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == card.count("script>alert")
