"""Page of a training step: all text from data is escaped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lakeclip.report.batch_page import BatchSummary, ShownSample, write_batch_page
from tests.unit.report.test_run_page import EVIL, Page


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    batch = BatchSummary(EVIL, 3, 0, 8, 1, EVIL, EVIL)
    pixels = np.zeros((8, 8, 3), np.uint8)
    sample = ShownSample(0, 0, EVIL, 5, EVIL, 40, 30, EVIL, ((7, EVIL),), pixels)
    write_batch_page(tmp_path / "page.html", batch, [sample])
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert not {"script", "a", "link", "iframe"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert {value[:11] for _, name, value in page.attributes if name == "src" and value} == {"data:image/"}
    assert "".join(page.texts).count("<script>") >= 5
    assert "default-src 'none'" in (tmp_path / "page.html").read_text("utf-8")
