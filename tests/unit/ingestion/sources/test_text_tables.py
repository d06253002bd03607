"""CSV, TSV and JSON Lines tables in the variants that are found in practice."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Sample, file_fingerprint
from lakeclip.ingestion.sources.csv import DelimitedTable
from lakeclip.ingestion.sources.jsonlines import JsonLinesTable
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.lake.folder.records import Rejected
from tests.unit.lake.sample_files import picture, write_files

URL = "https://example.org/1.jpg"


def read(path: Path, content: str | bytes, **columns: Any) -> list[Sample | Rejected]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(Tables([str(path)], **columns))


def url_sample(key: str, caption: str, url: str = URL, **metadata: object) -> Sample:
    return Sample(key, b"", (caption,), {"url": url, **metadata}, url)


def test_cc3m_has_no_header_and_literal_quotes(tmp_path: Path) -> None:
    found = read(tmp_path / "cc3m.tsv", f'a cat\t{URL}\n"quoted\t{URL}/2\nhe said "no"\t{URL}/3\n')
    assert found == [
        url_sample("0", "a cat"),
        url_sample("1", '"quoted', f"{URL}/2"),
        url_sample("2", 'he said "no"', f"{URL}/3"),
    ]


def test_urls_in_the_first_column_without_header(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", f'{URL},"a cat, a dog"\n') == [url_sample("0", "a cat, a dog")]


def test_open_clip_csv_with_relative_paths(tmp_path: Path) -> None:
    write_files(tmp_path / "images", {"1.jpg": picture(1)})
    write_files(tmp_path / "elsewhere", {"2.jpg": picture(2)})
    other = tmp_path / "elsewhere/2.jpg"
    found = read(tmp_path / "train.csv", f"filepath\ttitle\nimages/1.jpg\ta cat\n{other}\ta dog\nimages/3.jpg\ta cow\n")
    assert found == [
        Sample("0", picture(1), ("a cat",), {"filepath": "images/1.jpg"}),
        Sample("1", picture(2), ("a dog",), {"filepath": str(other)}),
        Rejected(
            "train.csv: line 4",
            f"image not found: images/3.jpg (tried in {tmp_path}, {tmp_path}/images)",
        ),
    ]


def test_the_mapping_shows_column_roles(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"URL,TEXT,NSFW,similarity\n{URL},a cat,UNLIKELY,0.31\n")
    table = Tables([str(tmp_path / "t.csv")])
    assert table.mapping == {"image address": "URL", "caption": "TEXT", "also kept": "NSFW, similarity"}
    (item,) = table
    assert item == Sample("0", b"", ("a cat",), {"URL": URL, "NSFW": "UNLIKELY", "similarity": 0.31}, URL)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("7", 7), ("-0.5", -0.5), ("007", "007"), ("1e5", "1e5"), ("", None), ("NaN", None), ("true", "true")],
)
def test_numeric_cells_are_converted(tmp_path: Path, cell: str, value: object) -> None:
    (item,) = read(tmp_path / "t.csv", f"url,caption,x\n{URL},a cat,{cell}\n")
    assert isinstance(item, Sample)
    assert item.metadata["x"] == value
    assert type(item.metadata["x"]) is type(value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + f"url;caption\r\n{URL};träume\r\n".encode(),
        f"url,caption\n{URL},träume\n".encode("cp1252"),
        f"url,caption\n{URL},träume\n".encode("utf-16"),
        f"\n\nurl,caption\n\n{URL},träume".encode(),
    ],
)
def test_encodings_and_separators(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "t.csv", content) == [url_sample("0", "träume")]


def test_compressed_tables(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv.gz", gzip.compress(f"url,caption\n{URL},a cat\n".encode())) == [
        url_sample("0", "a cat")
    ]
    line = json.dumps({"url": URL, "caption": "a cat"})
    assert read(tmp_path / "t.jsonl.gz", gzip.compress(line.encode())) == [url_sample("0", "a cat")]


def test_a_truncated_gzip_file_is_reported_and_not_completed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    rows = "".join(f"{os.urandom(20).hex()},{URL}/{i}\n" for i in range(2000))
    path.write_bytes(gzip.compress(f"caption,url\n{rows}".encode())[:30_000])
    table = Tables([str(path)])
    *good, last = table
    assert len(good) > 500
    assert all(isinstance(item, Sample) for item in good)
    assert isinstance(last, Rejected)
    assert last.reason.startswith("broken file")
    assert table.completed == []


def test_reading_continues_after_broken_lines(tmp_path: Path) -> None:
    found = read(
        tmp_path / "t.csv",
        f'url,caption\n{URL}\nx,{URL},b\n{URL},"not closed\n{URL},a cat\n{URL},"two\nlines"\n{URL},"x"y\n',
    )
    assert found == [
        Rejected("t.csv: line 2", "wrong number of columns: 1, not 2"),
        Rejected("t.csv: line 3", "wrong number of columns: 3, not 2"),
        url_sample("2", '"not closed'),
        url_sample("3", "a cat"),
        url_sample("4", "two\nlines"),
        url_sample("5", '"x"y'),
    ]


def test_a_quoted_comma_is_not_a_separator(tmp_path: Path) -> None:
    (item,) = read(tmp_path / "t.csv", f'url,caption,x\n{URL},"a,b"\n')
    assert item == Rejected("t.csv: line 2", "wrong number of columns: 2, not 3")


def test_an_oversized_line_is_skipped(tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", b"url,caption\n" + b"x" * (40 * 2**20) + f"\n{URL},a cat\n".encode())
    assert found == [Rejected("t.csv: line 2", "broken line: longer than 16 MB"), url_sample("1", "a cat")]


def test_json_lines(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.jpg": picture(1)})
    lines = [
        {"image": "a/1.jpg", "captions": ["a cat", " ", "a dog"], "id": 7, "tags": ["x"], "score": float("nan")},
        {"image": URL, "captions": "a cow", "box": {"x": 1}},
        "[1, 2]",
        "{",
        "",
        {"image": None, "captions": "nothing"},
        {"image": "a/1.jpg", "captions": [], "id": 8},
        {"image": "a/\0.jpg", "captions": "x"},
    ]
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    first, second, *rejected, unlabelled, zero = read(tmp_path / "t.jsonl", text)
    kept = {"image": "a/1.jpg", "id": 7, "tags": ["x"], "score": None, "box": None}
    assert first == Sample("0", picture(1), ("a cat", "a dog"), kept)
    assert isinstance(second, Sample)
    assert (second.url, second.captions, second.metadata["box"]) == (URL, ("a cow",), {"x": 1})
    assert [item.key for item in rejected] == ["t.jsonl: line 3", "t.jsonl: line 4", "t.jsonl: line 6"]
    assert [str(item[1]).partition(":")[0] for item in rejected] == [
        "not a JSON object",
        "broken line",
        "no image in this row",
    ]
    assert isinstance(unlabelled, Sample)
    assert (unlabelled.captions, unlabelled.metadata["id"]) == ((), 8)
    assert isinstance(zero, Rejected)
    assert "image not found" in zero.reason


def test_a_row_without_caption_is_kept_if_it_has_other_data(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", f"url,caption\n{URL},\n") == [Rejected("t.csv: line 2", "caption is empty")]
    (item,) = read(tmp_path / "t.csv", f"url,caption,label\n{URL},,frog\n")
    assert item == Sample("0", b"", (), {"url": URL, "label": "frog"}, URL)


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.jpg": picture(1)})
    content = f"Bild,Satz,url\n1.jpg,eine Katze,x\n{URL},ein Hund,x\n"
    found = read(tmp_path / "t.csv", content, image_column="Bild", caption_columns=["Satz"])
    assert [item.url if isinstance(item, Sample) else item for item in found] == ["", URL]
    assert [item.captions for item in found if isinstance(item, Sample)] == [("eine Katze",), ("ein Hund",)]
    (item,) = read(tmp_path / "t.csv", f"url,Satz\n{URL},1984\n", caption_columns=["Satz"])
    assert item == url_sample("0", "1984"), "a caption stays text even if it looks like a number"
    with pytest.raises(SourceError, match="'Foto' does not exist"):
        read(tmp_path / "t.csv", content, image_column="Foto")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Bild,Satz\nx,y\n", ["Bild (text), Satz (text)", "--image-column NAME"]),
        ("url,width_of_url\n", []),
        ("url\nhttps://x\n", ["neither captions", "--caption-column NAME"]),
        ("", ["is empty"]),
    ],
)
def test_unsuitable_columns_are_listed(tmp_path: Path, content: str, words: list[str]) -> None:
    if not words:
        assert read(tmp_path / "t.csv", content) == []
        return
    with pytest.raises(SourceError) as caught:
        read(tmp_path / "t.csv", content)
    assert all(word in str(caught.value) for word in words), caught.value


def test_json_lines_without_an_object_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no JSON object"):
        read(tmp_path / "t.jsonl", "[]\n3\n")


def test_position_and_completed_parts(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.csv", "b.jsonl")]
    paths[0].write_text(f"url,caption\n{URL},a cat\n")
    paths[1].write_text(json.dumps({"url": URL, "caption": "a dog"}))
    table = Tables([str(path) for path in paths])
    assert [table.part for _ in table] == ["a.csv", "b.jsonl"]
    completed = [(path.name, file_fingerprint(str(path))) for path in paths]
    assert table.completed == completed
    assert table.position == table.size == sum(path.stat().st_size for path in paths)
    again = Tables([str(path) for path in paths])
    again.skip_parts(completed[:1])
    assert [again.part for _ in again] == ["b.jsonl"]
    assert again.position == again.size


# Text that csv.writer can write: no surrogates and no zero bytes.
_TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)


@given(
    st.lists(st.tuples(_TEXT, _TEXT.filter(lambda text: text.strip() != "")), min_size=1, max_size=8),
    st.sampled_from([",", "\t", ";"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@settings(max_examples=100)
def test_csv_round_trip(rows: Sequence[tuple[str, str]], separator: str, end: str, quoting: int) -> None:
    # csv.writer does not quote a lone carriage return if lines end in newlines.
    assume(quoting == csv.QUOTE_ALL or end == "\r\n" or not any("\r" in text for row in rows for text in row))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=separator, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["alt", "url", "caption"])
    writer.writerows([key, URL, caption] for key, caption in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "t.csv")
        Path(path).write_bytes(buffer.getvalue().encode())
        table = DelimitedTable(path)
        found = [record.values for record in table.read(["alt", "url", "caption"])]
        samples = list(Tables([path]))
    assert found == [{"alt": key, "url": URL, "caption": caption} for key, caption in rows]
    assert [item.captions for item in samples if isinstance(item, Sample)] == [(text.strip(),) for _, text in rows]


@given(st.lists(st.dictionaries(_TEXT, st.none() | st.integers() | _TEXT | st.lists(_TEXT)), min_size=1, max_size=6))
@settings(max_examples=100)
def test_json_lines_round_trip(rows: list[dict[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.jsonl")
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline=""
        )
        names = {name for row in rows for name in row}
        if not names:
            return
        table = JsonLinesTable(str(path))
        assert set(table.columns) == names
        assert [record.values for record in table.read(names)] == rows
