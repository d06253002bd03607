from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lakeclip.errors import OutputError
from lakeclip.lake.statistics.caption_stats import Duplicates, TokenCount
from lakeclip.lake.statistics.contents import ColumnContent
from lakeclip.lake.statistics.counters import Bin, Stats
from lakeclip.lake.statistics.samples import LakeSample
from lakeclip.lake.statistics.summary import LakeSummary, Problem
from lakeclip.report.lake_page import write_lake_page
from tests.unit.lake.sample_files import picture
from tests.unit.report.test_run_page import EVIL, Page

EVIL_TOO = f"{EVIL}</style></title><img src=http://x/y onerror=alert(1)>' onclick=alert(2) "
EMPTY = LakeSummary("/lakes/x", "id@1", None, 0, 0, {})
FULL = replace(
    EMPTY,
    query="width > 3",
    num_rows=2_000_000,
    total_rows=3_000_000,
    columns={"image": "bytes", "text": "text", "label": "text"},
    image_column="image",
    caption_column="text",
    label_columns=["label"],
    contents={"label": ColumnContent(3, 1, common=[("cat", 997)])},
    rows_looked_at=100_000,
    with_captions=99_000,
    num_captions=198_000,
    captions_per_row=Stats(2, 2.0, 2.0, 2),
    caption_words=Stats(1, 9.0, 9.5, 120),
    words_histogram=[Bin(0, 9, 150_000), Bin(10, None, 48_000)],
    caption_tokens=Stats(3, 12.0, 14.0, 200),
    tokens_histogram=[Bin(0, 77, 197_000), Bin(78, None, 1_000)],
    token_limit=77,
    truncated=1_000,
    truncated_examples=["far too long"],
    duplicate_captions=Duplicates(99_000, 0.125, True, [("sale", 512)]),
    duplicate_images=Duplicates(100_000, 0.0625),
    unusable={"not downloaded": 12_000},
    formats={"jpeg": 88_000},
    width=Stats(20, 300.0, 333.0, 2_000),
    height=Stats(10, 200.0, 222.0, 1_000),
    common_sizes=[("640×480", 1_234)],
    shapes={"about square": 88_000},
    shorter_side_below={64: 77, 224: 7_777},
    sizes_looked_at=100_000,
    rows_checked=256,
    bad=32,
    problems=[Problem("truncated image", 32, [1, 2])],
)


def sample(**given: object) -> LakeSample:
    plain = LakeSample(7, "key-7", picture(size=(300, 200)), ("a dog", "two dogs"), "", "", {"label": "cat"})
    return plain._replace(**given)  # type: ignore[arg-type]


def write(tmp_path: Path, summary: LakeSummary, *shown: LakeSample, **given: object) -> Page:
    path = tmp_path / "page.html"
    write_lake_page(path, summary, shown, **given)  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    return Page(path.read_text("utf-8"))


def test_page_shows_the_statistics_and_their_source(tmp_path: Path) -> None:
    page = write(tmp_path, FULL, sample(), faulty=[sample(row=9, problem="truncated image: 3 bytes")])
    for text in (
        "2,000,000 rows of 3,000,000",
        "width > 3",
        "87.5%",
        "224 of 256 rows, spread evenly",
        "1,000 of 198,000 have more than 77 tokens",
        "12.5%",
        "6.2%",
        "not downloaded 12,000",
        "truncated image 32",
        "sale 512",
        "far too long",
        "640×480",
        "shorter side below 224 7,777",
        "cat (997); 3 missing",
        "Of 100,000 rows, spread evenly",
        "Unusable: truncated image: 3 bytes",
        "row 7 · key-7 · JPEG 300×200",
        "1 more value label cat",
    ):
        assert text in page.text, text
    assert page.tags.count("svg") == 2
    assert page.tags.count("rect") == 4
    assert [value for tag, name, value in page.attributes if (tag, name) == ("rect", "class")] == ["over"]


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    url = "https://pictures.example/1.jpg"
    page = write(tmp_path, FULL, sample(), sample(image=b"", url=url, metadata={"url": url}))
    assert not {"script", "link", "iframe", "object", "embed", "a"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "action", "style"):
            assert value is not None
            assert value.startswith(("data:image/", "width:", "margin-top:")), (tag, name, value)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text)
    assert f"image address, not downloaded {url}" in page.text


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    evil = EVIL_TOO
    summary = replace(
        FULL,
        path=evil,
        version=evil,
        query=evil,
        columns={evil: evil, "text": "text"},
        label_columns=[evil],
        contents={evil: ColumnContent(examples=[evil])},
        truncated_examples=[evil],
        duplicate_captions=Duplicates(9, 0.5, False, [(evil, 5)]),
        unusable={evil: 1},
        formats={evil: 3},
        common_sizes=[(evil, 3)],
        problems=[Problem(evil, 1, [0])],
    )
    row = sample(key=evil, captions=(evil,) * 9, problem=evil, metadata={evil: evil})
    tokens = TokenCount(lambda text: len(text.split()) + 2, 4)
    page = write(tmp_path, summary, row, row._replace(image=b"", url=evil), faulty=[row], tokens=tokens)
    assert not {"script", "a"} & set(page.tags)
    assert page.tags.count("img") == 2
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert {value[:11] for _, name, value in page.attributes if name == "src" and value} == {"data:image/"}
    assert " ".join(evil.split()) in page.text


def test_long_captions_show_the_truncated_part(tmp_path: Path) -> None:
    tokens = TokenCount(lambda text: len(text.split()) + 2, 5)
    page = write(tmp_path, FULL, sample(captions=("one two three four five", "one two")), tokens=tokens)
    assert "one two three [truncated here] four five" in page.text
    assert page.text.count("[truncated here]") == 1
    long = "x" * 50_000
    page = write(tmp_path, FULL, sample(captions=(long,)))
    assert "48,000 more characters" in page.text


def test_thumbnails_are_embedded(tmp_path: Path) -> None:
    page = write(tmp_path, FULL, sample(image=picture(size=(1600, 900))))
    (source,) = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert (image.format, max(image.size)) == ("JPEG", 192)


@pytest.mark.parametrize("kind", ["bomb", "cut", "text", "empty"])
def test_invalid_images_are_reported_and_not_decoded(tmp_path: Path, kind: str) -> None:
    bomb = picture(kind="PNG")
    header = bomb[:16] + (60_000).to_bytes(4, "big") * 2 + bomb[24:]
    data = {"bomb": header, "cut": picture()[:-300], "text": b"no image", "empty": b""}[kind]
    page = write(tmp_path, FULL, sample(image=data, problem="no image"))
    assert "img" not in page.tags
    assert "no image" in page.text


@pytest.mark.parametrize("changes", [{}, {"columns": {"n": "int64"}, "num_rows": 5, "total_rows": 5}])
def test_page_of_an_empty_lake(tmp_path: Path, changes: dict[str, object]) -> None:
    page = write(tmp_path, replace(EMPTY, **changes))  # type: ignore[arg-type]
    assert "No column with usable images was found" in page.text
    assert "svg" not in page.tags


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_lake_page(tmp_path / "page.html", EMPTY, [])
