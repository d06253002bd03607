"""Tables as people have them: encodings, separators, headers, lists of captions, images as text."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.csv import DelimitedTable
from lakeclip.ingestion.sources.jsonlines import JsonArrayTable
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.lake.folder.records import Rejected
from tests.unit.lake.sample_files import picture, write_files

URL = "https://example.org/1.jpg"


def read(path: Path, content: str | bytes, **options: Any) -> tuple[list[Sample | Rejected], Tables]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = Tables([str(path)], **options)
    items = list(table)
    table.account.check("the table")
    return items, table


def captions(items: list[Sample | Rejected]) -> list[tuple[str, ...]]:
    return [item.captions for item in items if isinstance(item, Sample)]


# ── encodings ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("encoding", "caption", "name"),
    [
        ("gbk", "一只红色的鸟", "GB18030"),
        ("shift_jis", "赤い鳥です", "Shift-JIS"),
        ("cp1251", "красная птица", "Windows-1251"),
        ("big5", "一隻紅色的鳥", "Big5"),
        ("euc_kr", "빨간 새 한 마리가 있다", "EUC-KR"),
        ("latin-1", "ein grüner Vogel, träumend", "Windows-1252"),
        ("utf-16-le", "café – naïve", "UTF-16-LE"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".json"])
def test_the_encoding_is_detected_and_said(tmp_path: Path, encoding: str, caption: str, name: str, suffix: str) -> None:
    text = f'url,caption\n{URL},"{caption}"\n'
    if suffix.startswith(".json"):
        text = json.dumps({"url": URL, "caption": caption}, ensure_ascii=False)
        text = f"[{text}]" if suffix == ".json" else text
    data = text.encode(encoding)
    items, table = read(tmp_path / f"t{suffix}", gzip.compress(data) if suffix.endswith(".gz") else data)
    assert captions(items) == [(caption,)]
    assert any(note.startswith(f"t{suffix}: read as {name}") and "--encoding decides" in note for note in table.notes)


def test_the_encoding_can_be_chosen(tmp_path: Path) -> None:
    items, table = read(tmp_path / "t.csv", f"url,caption\n{URL},caffè\n".encode("latin-1"), encoding="cp1250")
    assert captions(items) == [("caffč",)]
    assert table.notes == []
    items, table = read(tmp_path / "t.csv", f"url,caption\n{URL},a\x96b\n".encode("latin-1"), encoding="utf-8")
    assert captions(items) == [("a\ufffdb",)]
    assert "1 lines are not UTF-8 (line 2)" in table.notes[0]


def test_letters_far_into_the_file_decide(tmp_path: Path) -> None:
    rows = "".join(f"{URL},a cat {'x' * 2000}\n" for _ in range(1100)) + f"{URL},красная птица на ветке\n"
    items, table = read(tmp_path / "t.csv", f"url,caption\n{rows}".encode("cp1251"))
    assert captions(items)[-1] == ("красная птица на ветке",)
    assert "Windows-1251 (detected)" in table.notes[0]


def test_broken_lines_of_utf8_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"{URL},träume {i}\n" for i in range(20))
    data = f"url,caption\n{rows}".encode() + f"{URL},Käfer\n".encode("latin-1") + f"{URL},ü".encode() + b"\xff\n"
    items, table = read(tmp_path / "t.csv", data)
    assert captions(items)[-2:] == [("Käfer",), ("ü\ufffd",)]
    (note,) = table.notes
    assert "2 lines are not UTF-8 (line 22, 23)" in note


# ── several captions, numbers, templates ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cell", ['["a cat", "two"]', "['a cat', 'two']", "['a cat' 'two']"])
@pytest.mark.parametrize("column", ["caption", "captions", "raw", "sentences"])
def test_lists_in_cells(tmp_path: Path, cell: str, column: str) -> None:
    quoted = cell.replace('"', '""')
    items, _ = read(tmp_path / "t.csv", f'url,{column}\n{URL},"{quoted}"\n')
    assert captions(items) == [("a cat", "two")]


def test_columns_with_numbers_are_captions_together(tmp_path: Path) -> None:
    items, table = read(tmp_path / "t.csv", f"url,caption_1,caption_2,label\n{URL},a cat,an animal,3\n")
    assert items == [Sample("0", b"", ("a cat", "an animal"), {"url": URL, "label": 3}, URL)]
    assert "captions are in caption_1, caption_2" in table.notes[0]
    items, _ = read(tmp_path / "t.csv", f"url,a,b\n{URL},x,1984\n", caption_columns=["b", "a"])
    assert captions(items) == [("1984", "x")]


def test_templates(tmp_path: Path) -> None:
    items, table = read(
        tmp_path / "t.csv", f"url,brand,name\n{URL},Acme,chair\n{URL},,stool\n", caption_template="a {brand} {name}"
    )
    assert captions(items) == [("a Acme chair",), ("a stool",)]
    assert isinstance(items[0], Sample)
    assert items[0].metadata == {"url": URL, "brand": "Acme", "name": "chair"}
    assert table.mapping["caption"] == "template 'a {brand} {name}'"
    with pytest.raises(SourceError, match="no column colour"):
        read(tmp_path / "t.csv", f"url,name\n{URL},x\n", caption_template="{colour} {name}")


def test_numbers_are_captions(tmp_path: Path) -> None:
    items, _ = read(tmp_path / "t.jsonl", "\n".join(json.dumps({"url": URL, "text": i}) for i in (1984, 1985)))
    assert captions(items) == [("1984",), ("1985",)]
    rows = [{"url": URL, "caption": "a"}, {"url": URL, "caption": 1984}, {"url": URL, "caption": None, "id": 1}]
    items, _ = read(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert captions(items) == [("a",), ("1984",), ()]


# ── guesses ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_that_appear_late_become_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lakeclip.ingestion.sources.jsonlines._INFERENCE_ROWS", 900)
    rows = [{"url": URL, "tag": "x"}] * 1_010 + [{"url": URL, "tag": "x", "caption": "a cat", "split": "val"}] * 2
    items, table = read(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert len(items) == 1_012
    assert items[-1] == Sample("1011", b"", ("a cat",), {"url": URL, "tag": "x", "split": "val"}, URL)
    assert captions(items[:1]) == [()]
    assert table.account.read["columns"] == table.account.used["columns"] == 4
    assert any("caption (line 1011), split (line 1011)" in note for note in table.notes)
    assert any("captions are in caption, which appears late" in note for note in table.notes)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("filepath", "caption")),
        ({"image_column": "2", "caption_columns": ["3"]}, ("filepath", "caption")),
        ({"image_column": "p0.jpg", "caption_columns": ["a red thing"]}, ("filepath", "caption")),
        ({"caption_columns": ["column 1"]}, ("filepath", "column 1")),
    ],
)
def test_a_table_of_three_columns_without_header(
    tmp_path: Path, options: dict[str, Any], expected: tuple[str, str]
) -> None:
    write_files(tmp_path, {"p0.jpg": picture(0), "p1.jpg": picture(1)})
    items, table = read(tmp_path / "t.csv", "0,p0.jpg,a red thing\n1,p1.jpg,a green thing\n", **options)
    texts = [("a red thing",), ("a green thing",)] if expected[1] == "caption" else [("0",), ("1",)]
    assert captions(items) == texts
    assert [item.image for item in items if isinstance(item, Sample)] == [picture(0), picture(1)]
    assert "the first line is a row, not a header" in table.notes[0]


def test_numbers_above_numbers_are_a_row(tmp_path: Path) -> None:
    write_files(tmp_path, {"1000.jpg": picture(0), "1001.jpg": picture(1)})
    items, _ = read(tmp_path / "t.csv", "1000,Red shirt\n1001,Green top\n", image_column="1", caption_columns=["2"])
    assert captions(items) == [("Red shirt",), ("Green top",)]
    items, _ = read(tmp_path / "t.csv", f"0,1\n{URL},a cat\n", image_column="0", caption_columns=["1"])
    assert captions(items) == [("a cat",)]


@pytest.mark.parametrize(
    ("header", "row", "chosen"),
    [
        ("url,image_url,caption", f"https://shop.example/p/1,{URL},a cat", "image_url"),
        ("link,photo_image_url,description", f"https://shop.example/p/1,{URL},a cat", "photo_image_url"),
        ("url,cover,caption", f"https://shop.example/p/1,{URL},a cat", "cover"),
        ("image,main_src,caption", f"17,{URL},a cat", "main_src"),
        ("url,caption", "https://example.org/page?id=1,a cat", "url"),
    ],
)
def test_the_address_of_the_picture_is_chosen(tmp_path: Path, header: str, row: str, chosen: str) -> None:
    items, table = read(tmp_path / "t.csv", f"{header}\n{row}\n")
    (item,) = items
    assert isinstance(item, Sample)
    assert item.url == item.metadata[chosen]
    assert chosen in table.mapping.values()


def test_a_guess_from_values_is_said(tmp_path: Path) -> None:
    rows = "".join(f"{URL},shirt {i} in red,Acme\n" for i in range(9))
    items, table = read(tmp_path / "t.csv", f"cover,productDisplayName,brand\n{rows}")
    assert captions(items)[0] == ("shirt 0 in red",)
    assert any("images are in cover, as its values show" in note for note in table.notes)
    assert any("captions are in productDisplayName" in note for note in table.notes)


# ── separators ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_flickr30k_has_bars_with_blanks(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.jpg": picture(1)})
    text = "image_name| comment_number| comment\n1.jpg| 0| Two men , outside .\n1.jpg| 1| Men\n"
    items, table = read(tmp_path / "results.csv", text)
    assert items == [Sample("0", picture(1), ("Two men , outside .", "Men"), {"image_name": "1.jpg"})]
    assert "columns are separated by '|'" in table.notes[0]


def test_the_delimiter_can_be_chosen(tmp_path: Path) -> None:
    items, _ = read(tmp_path / "t.csv", f"url:caption\n'x':a cat\n{URL.replace(':', '%3A')}:a\n", delimiter=":")
    assert items[0] == Rejected("t.csv: line 2", "image not found: 'x' (tried in " + str(tmp_path) + ")") or items
    items, _ = read(tmp_path / "t.csv", f"url~caption\n{URL}~a cat, sitting\n", delimiter="~")
    assert captions(items) == [("a cat, sitting",)]


def test_commas_in_the_caption_are_joined_if_there_is_one_way(tmp_path: Path) -> None:
    rows = "".join(f"{1000 + i},{('Men', 'Women')[i % 2]},2011,Shirt no. {i}\n" for i in range(60))
    odd = "2000,Men,2012,Blue jacket, with hood\n2001,Men,2012,Jacket,blue,warm\n2002,Men,Kids,2012,Cap\n2003,Men\n"
    for i in range(60):
        write_files(tmp_path, {f"{1000 + i}.jpg": picture(i)})
    write_files(tmp_path, {f"{2000 + i}.jpg": picture(i) for i in range(4)})
    items, table = read(tmp_path / "t.csv", f"id,gender,year,name\n{rows}{odd}", caption_columns=["name"])
    assert captions(items)[-2:] == [("Blue jacket, with hood",), ("Jacket,blue,warm",)]
    assert items[-2:] == [
        Rejected("t.csv: line 64", "wrong number of columns: 5, not 4"),
        Rejected("t.csv: line 65", "wrong number of columns: 2, not 4"),
    ]
    assert any("2 lines have separators within the caption" in note for note in table.notes)
    assert any("id holds the names of image files" in note for note in table.notes)
    assert table.account.left_out["rows", "wrong number of columns"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nfilepath;caption\n1.jpg;a cat, sitting\n",
        'filepath,caption\r1.jpg,"a cat, sitting"\r',
        'filepath,caption\n1.jpg,"a cat, sitting",\n',
        "1.jpg,a cat, sitting\n2.jpg,a dog\n",
        " filepath | caption \n 1.jpg | a cat, sitting \n",
    ],
)
def test_notations_of_other_programs(tmp_path: Path, text: str) -> None:
    write_files(tmp_path, {"1.jpg": picture(1), "2.jpg": picture(2)})
    items, _ = read(tmp_path / "t.csv", text)
    assert captions(items)[0] == ("a cat, sitting",)
    assert isinstance(items[0], Sample)
    assert items[0].image == picture(1)


def test_two_texts_beside_each_other_are_not_joined(tmp_path: Path) -> None:
    rows = "".join(f"{URL},the title {i},the text {i}\n" for i in range(9))
    items, _ = read(tmp_path / "t.csv", f"url,title,caption\n{rows}{URL},Cats,big,A cat\n")
    assert items[-1] == Rejected("t.csv: line 11", "wrong number of columns: 4, not 3")


# ── images as text ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "write",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
        lambda data: data.hex(),
        repr,
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_images_as_text(tmp_path: Path, write: Any, suffix: str) -> None:
    rows = [{"image": write(picture(i)), "caption": f"no. {i}", "id": i} for i in range(2)]
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, ["image", "caption", "id"])
        writer.writeheader()
        writer.writerows(rows)
        path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else buffer.getvalue())
    items = list(Tables([str(path)]))
    assert items == [Sample(str(i), picture(i), (f"no. {i}",), {"id": i}) for i in range(2)]


def test_large_and_broken_images_as_text(tmp_path: Path) -> None:
    data = picture(1) + random.Random(0).randbytes(300_000)
    text = base64.b64encode(data).decode()
    broken = "data:image/jpeg;base64,/9j/4AAQSk*ZJRg"
    items, _ = read(tmp_path / "t.csv", f'image,caption\n{text},a\n"{broken}",b\n')
    assert items[0] == Sample("0", data, ("a",), {})
    assert items[1] == Rejected("t.csv: line 3", "broken data: URI: its base64 text is damaged")


# ── JSON arrays ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_array_of_objects(tmp_path: Path) -> None:
    rows = [{"url": URL, "caption": f"no. {i}", "i": i} for i in range(800)]
    items, table = read(tmp_path / "t.json", json.dumps(rows, indent=1))
    assert items == [Sample(str(i), b"", (f"no. {i}",), {"url": URL, "i": i}, URL) for i in range(800)]
    assert [part for part, _ in table.completed] == ["t.json"]
    items, table = read(tmp_path / "t.json", json.dumps([*rows[:2], 7, *rows[2:4]]))
    assert [type(item) for item in items] == [Sample, Sample, Rejected, Sample, Sample]
    items, table = read(tmp_path / "t.json", json.dumps(rows)[:-5000])
    assert 600 < len(items) < 800
    assert isinstance(items[-1], Rejected)
    assert "everything after item" in items[-1].reason
    assert table.completed == []
    items, _ = read(tmp_path / "t.json", "\n".join(map(json.dumps, rows)))
    assert len(items) == 800, "JSON Lines in a file called .json"
    with pytest.raises(SourceError, match="holds no JSON object"):
        read(tmp_path / "t.json", "[]")


# ── properties ──────────────────────────────────────────────────────────────────────────────────────────────────────

_ALPHABETS = {
    "utf-8": st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\ufeff"),
    "utf-16": st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\ufeff"),
    "utf-32": st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\ufeff"),
}
_PREFIXES = {
    "gb18030": "一只红色的鸟在树枝上唱歌 ",
    "cp932": "赤い鳥が枝にとまっています ",
    "cp1251": "красная птица на ветке ",
    "cp949": "나뭇가지에 앉은 빨간 새 한 마리 ",
    "cp1252": "grüne Vögel träumen über Äpfel ",
    **dict.fromkeys(_ALPHABETS, ""),
}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_text_in_any_encoding_and_layout_is_read_as_written(data: st.DataObject) -> None:
    encoding = data.draw(st.sampled_from(sorted(_PREFIXES)))
    alphabet = _ALPHABETS.get(encoding, st.sampled_from(sorted(set(_PREFIXES[encoding])) + list("abc,;|\t\n\"'")))
    prefix = _PREFIXES[encoding]
    texts = data.draw(
        st.lists(st.text(alphabet, max_size=12).map(lambda text: f"{prefix}{text}."), min_size=4, max_size=8)
    )
    keys = data.draw(st.lists(st.text(alphabet, max_size=8), min_size=len(texts), max_size=len(texts)))
    separator = data.draw(st.sampled_from([",", ";", "\t", "|"]))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(["alt", "url", "caption"])
    writer.writerows([key, URL, text] for key, text in zip(keys, texts, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        path.write_bytes(buffer.getvalue().encode(encoding))
        found = [record.values for record in DelimitedTable(str(path)).read(["alt", "url", "caption"])]
    assert found == [{"alt": key, "url": URL, "caption": text} for key, text in zip(keys, texts, strict=True)]


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=4)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), _JSON, min_size=1), min_size=1, max_size=6), st.none() | st.just(1)
)
@settings(max_examples=60)
def test_json_array_round_trip(rows: list[dict[str, object]], indent: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.json")
        path.write_text(json.dumps(rows, indent=indent))
        table = JsonArrayTable(str(path))
        assert [record.values for record in table.read(list(table.columns))] == rows
