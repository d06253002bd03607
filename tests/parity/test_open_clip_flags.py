"""Test that the guide for users of open_clip lists all of its flags, and no others."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

params = pytest.importorskip("open_clip_train.params", reason="runs in the second environment")

PAGE = Path(__file__).parents[2] / "docs/guides/coming-from.md"


def test_the_guide_lists_every_flag_of_open_clip() -> None:
    theirs = set(re.findall(r"add_argument\(\s*['\"](--[a-z0-9-]+)", inspect.getsource(params)))
    assert len(theirs) > 80
    page = PAGE.read_text(encoding="utf-8").partition("## train-CLIP")[0]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `--")]
    assert set(re.findall(r"`(--[a-z0-9-]+)`", " ".join(rows))) == theirs
