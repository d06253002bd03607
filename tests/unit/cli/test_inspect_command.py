"""`lakeclip inspect`, on lakes of drawn scenes and on others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lakeclip.cli.inspect import run
from lakeclip.errors import ConfigError, LakeError, OutputError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.engine import deeplake
from lakeclip.lake.images import ImageInfo
from tests.unit.lake.sample_files import picture


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 rows: one caption of 90 words, one truncated image, one that is only a URL, one repeated caption."""
    path = str(tmp_path_factory.mktemp("lakes") / "odd")
    with LakeWriter(path) as writer:
        for i in range(30):
            image, info = picture(i), ImageInfo("jpeg", 24, 16)
            caption = "word " * 90 if i == 3 else "the same" if i in (4, 5) else f"caption {i}"
            row = Sample(f"{i}", image, (caption,), {"label": "cat" if i % 3 else "dog", "url": f"http://x/{i}"})
            if i == 7:
                row = row._replace(image=image[:-200])
            if i == 9:
                row, info = row._replace(image=b"", url="http://x/9", unusable="HTTP 404"), ImageInfo("", 0, 0)
            writer.append(row, info)
    return path


def test_the_figures_are_printed(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    run([lake])
    said = capsys.readouterr()
    for words in (
        "label (text) ← labels: cat (20), dog (10)",
        "captions (text) ← captions",
        "image (bytes) ← images",
        "1 of 30 (3.3%) captions have more than 77 tokens",
        "6.7% of 30 first captions occur more than once",
        "2 × the same",
        "2 of 30 (6.7%) rows cannot be trained on",
        "1 truncated image (rows 7)",
        "1 of 30 (3.3%) rows: HTTP 404",
        "29 of 29 (100.0%) below 64",
        "78+ █",
    ):
        assert words in said.out, words
    assert said.err == ""


def test_the_page_and_the_figures_are_written(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    run([lake, "--query", "label == 'cat'", "--html", str(page), "--json", str(figures), "--samples", "4", "--full"])
    found = json.loads(figures.read_text())
    assert (found["num_rows"], found["total_rows"], found["rows_checked"]) == (20, 30, 20)
    assert found["problems"] == [{"reason": "truncated image", "rows": 1, "examples": [4]}]
    text = page.read_text("utf-8")
    # The four, and the one that is broken.
    assert text.count("<article") == 5
    assert text.count("<img") == 4
    assert "row 7 " in text
    assert f"page: {page}" in capsys.readouterr().out


def test_a_lake_without_usable_columns_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types = deeplake().types
    dataset = deeplake().create(
        str(tmp_path / "lake"), schema={"n": types.Int64(), "tags": types.Sequence(types.Text())}
    )
    dataset.append({"n": np.arange(5), "tags": [["a"]] * 5})
    dataset.commit()
    run([str(tmp_path / "lake"), "--html", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert "no usable column; name one with --image-column" in said
    assert "n (int64): 0 to 4, median 2" in said
    assert "tags (sequence[text])" in said
    assert "<article" in (tmp_path / "page.html").read_text()


def test_nothing_in_a_lake_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;title\x07\x1b[31m[red]a cat\r\n[/red]"
    with LakeWriter(str(tmp_path / "lake")) as writer:
        for i in range(2):
            sample = Sample(f"{i}", picture(i), (evil * 30,), {"note": evil, evil: 1})
            writer.append(sample._replace(unusable=evil), ImageInfo("jpeg", 24, 16))
    run([str(tmp_path / "lake")])
    said = capsys.readouterr().out
    assert "[red]a cat" in said
    assert not {"\x1b", "\x07", "\r"} & set(said)


def test_an_empty_lake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types = deeplake().types
    deeplake().create(str(tmp_path / "lake"), schema={"image": types.Bytes(), "text": types.Text()}).commit()
    run([str(tmp_path / "lake"), "--html", str(tmp_path / "page.html"), "--json", str(tmp_path / "f.json"), "--full"])
    assert "0 of 0 rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())["num_rows"] == 0


def test_invalid_arguments_are_refused(lake: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--samples -1"):
        run([lake, "--samples", "-1"])
    for flag in ("--html", "--json"):
        with pytest.raises(OutputError, match="cannot write"):
            run([lake, flag, str(tmp_path / "no/file")])
        with pytest.raises(OutputError, match="cannot write"):
            run([lake, flag, str(tmp_path)])
    old = tmp_path / "old"
    old.mkdir()
    (old / "dataset_meta.json").write_text("{}")
    with pytest.raises(LakeError, match=r"(?s)Deep Lake 3.*lakeclip ingest"):
        run([str(old)])
