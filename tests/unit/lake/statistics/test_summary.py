from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.engine import deeplake
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.statistics import summary
from lakeclip.lake.statistics.caption_stats import Duplicates, TokenCount
from lakeclip.lake.statistics.counters import Bin, Stats
from lakeclip.lake.statistics.samples import read_samples
from lakeclip.lake.statistics.summary import summarize
from tests.unit.lake.sample_files import picture


def make(path: Path, count: int) -> None:
    with LakeWriter(str(path)) as writer:
        for i in range(count):
            captions = tuple(f"{'word ' * (j + 1)}".strip() for j in range(i % 3))
            writer.append(Sample(f"{i}", b"x", captions, {}), ImageInfo("png" if i % 2 else "jpeg", 10 + i, 20))


def test_the_statistics_of_a_small_lake_are_exact(tmp_path: Path) -> None:
    make(tmp_path / "lake", 30)
    found = summarize(open_lake(tmp_path / "lake"))
    assert (found.num_rows, found.rows_looked_at, found.sizes_looked_at, found.with_captions) == (30, 30, 30, 20)
    assert found.formats == {"jpeg": 15, "png": 15}
    assert found.width == Stats(10, 24.5, 24.5, 39)
    assert found.height == Stats(20, 20.0, 20.0, 20)
    assert found.captions_per_row == Stats(1, 1.5, 1.5, 2)
    assert found.num_captions == 30
    assert found.caption_words == Stats(1, 1.0, 1.33, 2)
    assert found.words_histogram == [Bin(1, 1, 20), Bin(2, 2, 10)]
    assert found.examples == ["word"] * 5
    assert summarize(open_lake(tmp_path / "lake", "width < 15")).num_rows == 5
    values = found.to_dict()
    assert values["num_rows"] == 30
    assert isinstance(values["columns"], dict)


def test_a_large_lake_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "lake", 3_000)
    monkeypatch.setattr(summary, "MAX_ROWS", 1_000)
    found = summarize(open_lake(tmp_path / "lake"))
    assert found.num_rows == 3_000
    assert found.rows_looked_at == 1_000
    assert found.width is not None
    assert (found.width.min, found.width.max) == (10, 3_009)


def test_a_lake_without_usable_columns_has_its_columns_listed(tmp_path: Path) -> None:
    dataset = deeplake().create(str(tmp_path / "lake"), schema={"n": deeplake().types.Int64()})
    dataset.append({"n": np.arange(5)})
    dataset.commit()
    found = summarize(open_lake(tmp_path / "lake"))
    assert (found.num_rows, found.columns) == (5, {"n": "int64"})
    assert found.image_column is found.caption_column is None


def test_sizes_come_from_headers_if_no_column_has_them(tmp_path: Path) -> None:
    types = deeplake().types
    dataset = deeplake().create(str(tmp_path / "lake"), schema={"image": types.Bytes()})
    dataset.append({"image": [picture(1, "PNG", size=(30, 20)), picture(2, size=(40, 20)), b"no image"]})
    dataset.commit()
    found = summarize(open_lake(tmp_path / "lake"))
    assert found.formats == {"png": 1, "jpeg": 1, "not an image": 1}
    assert found.width == Stats(30, 35.0, 35.0, 40)


def test_an_empty_lake(tmp_path: Path) -> None:
    types = deeplake().types
    deeplake().create(str(tmp_path / "lake"), schema={"image": types.Bytes(), "text": types.Text()}).commit()
    found = summarize(open_lake(tmp_path / "lake"))
    assert (found.num_rows, found.with_captions) == (0, 0)


OURS = {"key": "Text", "image": "Bytes", "format": "Text", "crc32": "Int64", "width": "Int32", "height": "Int32"}
OURS |= {"text": "Text", "captions": "Text"}


def words(text: str) -> int:
    return len(text.split()) + 2


def write(path: Path, rows: list[tuple[Sample, ImageInfo]]) -> Lake:
    with LakeWriter(str(path)) as writer:
        for row in rows:
            writer.append(*row)
    return open_lake(path, include_unusable=True)


def test_truncated_captions_are_counted(tmp_path: Path) -> None:
    lengths = [3, 8, 9, 4, 30]
    texts = [" ".join(["w"] * length) for length in lengths]
    lake = write(tmp_path / "lake", [(Sample("0", b"x", tuple(texts), {}), ImageInfo("png", 1, 1))])
    found = summarize(lake, tokens=TokenCount(words, 10))
    assert (found.token_limit, found.truncated, found.num_captions) == (10, 2, 5)
    assert found.truncated_examples == [texts[2], texts[4]]
    assert found.caption_tokens == Stats(5, 10.0, 12.8, 32)
    assert found.tokens_histogram[-1] == Bin(11, None, 2)
    without = summarize(lake)
    assert (without.token_limit, without.caption_tokens, without.tokens_histogram) == (None, None, [])


def test_duplicates_are_counted(tmp_path: Path) -> None:
    captions = ["sale", "a cat", "sale", "a dog", "sale", "a cat", "a fox", ""]
    rows = []
    for i, text in enumerate(captions):
        data = picture(max(i, 2))
        rows.append((Sample(f"{i}", data, (text,) if text else (), {}), ImageInfo("jpeg", 24, 16)))
    found = summarize(write(tmp_path / "lake", rows))
    assert found.duplicate_captions == Duplicates(7, 5 / 7, False, [("sale", 3), ("a cat", 2)])
    assert found.duplicate_images == Duplicates(8, 3 / 8)


def test_rows_that_cannot_be_used_for_training_are_counted_by_reason(tmp_path: Path) -> None:
    good, cut = picture(1), picture(2)[:-200]
    images = [good, cut, b"", b"", good, good, b"text", good]
    notes = ["", "", "not downloaded", "HTTP 404: gone", "", "", "", ""]
    sums = [zlib.crc32(image) for image in images]
    sums[4] += 1
    types = deeplake().types
    schema = {name: getattr(types, kind)() for name, kind in {**OURS, "unusable": "Text"}.items()}
    dataset = deeplake().create(str(tmp_path / "lake"), schema=schema)
    texts = ["a cat"] * 7 + [""]
    dataset.append(
        {
            "key": [f"{i}" for i in range(8)],
            "image": images,
            "format": ["jpeg" if image else "" for image in images],
            "crc32": sums,
            "width": [24 if image else 0 for image in images],
            "height": [16 if image else 0 for image in images],
            "text": texts,
            "captions": [json.dumps([text]) if text else "" for text in texts],
            "unusable": notes,
        }
    )
    dataset.commit()
    found = summarize(open_lake(tmp_path / "lake", include_unusable=True))
    assert (found.rows_checked, found.bad) == (8, 6)
    assert {problem.reason: (problem.rows, problem.examples) for problem in found.problems} == {
        "truncated image": (1, [1]),
        "not downloaded": (1, [2]),
        "HTTP 404": (1, [3]),
        "damaged": (1, [4]),
        "not an image": (1, [6]),
        "no caption": (1, [7]),
    }
    assert found.unusable == {"not downloaded": 1, "HTTP 404": 1}
    assert (found.formats, found.sizes_looked_at) == ({"jpeg": 6}, 8)
    queried = summarize(open_lake(tmp_path / "lake", "unusable == ''", include_unusable=True))
    assert (queried.rows_checked, queried.bad, queried.unusable) == (6, 4, {})


def test_sizes_and_shapes(tmp_path: Path) -> None:
    sizes = [(300, 300), (300, 300), (63, 900), (640, 480), (1000, 223), (640, 480), (640, 480)]
    rows = [(Sample(f"{i}", b"%d" % i, (), {}), ImageInfo("jpeg", *size)) for i, size in enumerate(sizes)]
    found = summarize(write(tmp_path / "lake", rows))
    assert found.common_sizes[:2] == [("640×480", 3), ("300×300", 2)]
    assert found.shapes == {
        "taller than 1:2": 1,
        "1:2 to 4:5": 0,
        "about square": 2,
        "5:4 to 2:1": 3,
        "wider than 2:1": 1,
    }
    assert found.shorter_side_below == {64: 1, 224: 2}


def test_images_are_checked_in_a_sample_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(Sample(f"{i}", picture(i), ("x",), {"n": i}), ImageInfo("jpeg", 24, 16)) for i in range(400)]
    lake = write(tmp_path / "lake", rows)
    seen: list[tuple[str, int, int]] = []
    found = summarize(lake, on_progress=lambda *progress: seen.append(progress))
    assert (found.rows_looked_at, found.rows_checked, found.bad) == (400, 256, 0)
    assert seen[0] == ("columns", 400, 400)
    assert seen[-1] == ("images", 256, 256)
    monkeypatch.setattr(summary, "MAX_ROWS", 80)
    assert summarize(lake).rows_looked_at == 80
    monkeypatch.setattr(summary, "_BLOCK_ROWS", 64)
    full = summarize(lake, every_row=True)
    assert (full.rows_looked_at, full.rows_checked) == (400, 400)
    assert (full.contents["n"].min, full.contents["n"].max) == (0, 399)


def test_columns_of_other_lakes_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    """Leave out sequences of text, which crash the process in half of all runs, and vectors."""
    types = deeplake().types
    schema = {
        "img": types.Image("uint8", "jpeg"),
        "caption": types.Text(),
        "title": types.Text(),
        "tags": types.Sequence(types.Text()),
        "vector": types.Embedding(4),
        "class": types.ClassLabel(types.Int32()),
        "score": types.Float32(),
        "when": types.Nullable(types.Int32()),
    }
    dataset = deeplake().create(str(tmp_path / "lake"), schema=schema)
    dataset.append(
        {
            "img": [picture(i, size=(30 + i, 20)) for i in range(6)],
            "caption": ["one", "two", "two", "", "five", "six"],
            "title": ["t"] * 6,
            "tags": [["a", "b"]] * 6,
            "vector": np.zeros((6, 4), np.float32),
            "class": [0, 1, 0, 1, 0, 1],
            "score": [0.5, float("nan"), 1, 2, 3, 4],
            "when": [None, 1, 2, 3, 4, 5],
        }
    )
    dataset.commit()
    lake = open_lake(tmp_path / "lake", include_unusable=True)
    found = summarize(lake, tokens=TokenCount(words, 77))
    assert (found.image_column, found.caption_column, found.label_columns) == ("img", "caption", ["class"])
    assert (found.with_captions, found.formats) == (5, {"jpeg": 6})
    assert (found.width, found.bad) == (Stats(30, 32.5, 32.5, 35), 1)
    assert set(found.contents) == {"title", "class", "score", "when"}
    assert (found.contents["score"].missing, found.contents["when"].missing) == (1, 1)
    (row,) = read_samples(lake, [2])
    assert row.captions == ("two",)
    assert row.metadata == {"title": "t", "class": "0", "score": "1.0", "when": "2"}


def test_any_text_column_can_be_the_caption_column(tmp_path: Path) -> None:
    write(tmp_path / "lake", [(Sample("0", picture(), ("x",), {}), ImageInfo("jpeg", 24, 16))])
    found = summarize(open_lake(tmp_path / "lake", caption_column="format"))
    assert (found.caption_column, found.examples, found.formats) == ("format", ["jpeg"], {"jpeg": 1})
    assert "text" in found.contents
    assert "format" not in found.contents


def test_the_summary_can_be_written_as_json(tmp_path: Path) -> None:
    metadata = {"score": float("nan"), "label": "cat"}
    lake = write(tmp_path / "lake", [(Sample("0", picture(), ("x",), metadata), ImageInfo("jpeg", 24, 16))])
    values = json.loads(json.dumps(summarize(lake).to_dict(), allow_nan=False))
    for key in ("num_rows", "total_rows", "columns", "formats", "width", "caption_words", "examples", "rows_looked_at"):
        assert key in values
    assert values["contents"]["label"]["common"] == [["cat", 1]]
    assert values["label_columns"] == ["label"]


def test_samples_have_the_image_url_and_the_problem(tmp_path: Path) -> None:
    here = Sample("a", picture(), ("x", "y"), {"url": "http://x/a.jpg", "n": 1})
    gone = Sample("b", b"", ("z",), {"url": "http://x/b.jpg", "n": None}, "http://x/b.jpg", "HTTP 404")
    lake = write(tmp_path / "lake", [(here, ImageInfo("jpeg", 24, 16)), (gone, ImageInfo("", 0, 0))])
    first, second = read_samples(lake, [0, 1])
    assert (first.row, first.key, first.image, first.captions) == (0, "a", here.image, ("x", "y"))
    assert (first.problem, first.url) == ("", "")
    assert first.metadata == {"url": "http://x/a.jpg", "n": "1"}
    assert (second.problem, second.url, second.image) == ("HTTP 404", "http://x/b.jpg", b"")
    assert "n" not in second.metadata
    assert read_samples(lake, []) == []
