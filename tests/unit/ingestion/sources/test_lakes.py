"""Lakes as sources: written by lakeclip, by other programs, and by Deep Lake 3."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lakeclip.errors import LakeError, SourceError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample, Samples
from lakeclip.ingestion.sources.lakes import DeepLake3Rows, LakeRows, is_deeplake3, is_lake
from lakeclip.lake import engine
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.folder.records import Rejected
from tests.unit.lake.sample_files import picture, sample

URL = "https://example.org/1.jpg"
DEEPLAKE3_ZIP = Path(__file__).parents[3] / "data/v3/dataset.zip"


@pytest.fixture(scope="module")
def native_lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a lake of six rows; row 4 has only a URL, and the download of row 5 failed."""
    path = tmp_path_factory.mktemp("lakes") / "ours"
    source = Samples("x", [sample(i, ("a cat", f"no. {i}"), width=i, label="cat") for i in range(4)], 4)
    source.part = "a.tar"
    links = Samples(
        "y",
        [
            Sample("4", b"", ("a dog",), {"URL": URL}, URL),
            Sample("5", b"", ("a cow",), {"URL": URL}, URL, "HTTP 404"),
        ],
        2,
    )
    fill_lake([source, links], str(path))
    return str(path)


def test_rows_of_a_native_lake_are_the_ingested_samples(native_lake: str) -> None:
    source = LakeRows(native_lake)
    rows = [item for item in source if isinstance(item, Sample)]
    assert [row.key for row in rows] == [f"a.tar/key{i}" for i in range(4)] + ["4", "5"]
    assert rows[1].image == picture(1)
    assert rows[1].captions == ("a cat", "no. 1")
    assert rows[1].metadata == {"width": 1, "label": "cat", "URL": ""}
    assert [(row.image, row.url, row.unusable) for row in rows[4:]] == [
        (b"", URL, "not downloaded"),
        (b"", URL, "HTTP 404"),
    ]
    assert source.part == "ours"
    assert source.size == source.position == 6
    assert source.mapping == {
        "image": "image",
        "image address": "URL",
        "caption": "captions",
        "also kept": "width_meta, label",
    }
    assert not source.ignored


def test_a_copied_lake_has_the_same_columns(native_lake: str, tmp_path: Path) -> None:
    fill_lake([LakeRows(native_lake, query="label == 'cat'")], str(tmp_path / "new"))
    before, after = open_lake(native_lake), open_lake(tmp_path / "new")
    assert after.columns.keys() == before.columns.keys() - {"unusable"}
    assert len(after) == 4
    assert after.read([2])[0].image == before.read([2])[0].image
    assert after.captions([2]) == before.captions([2])


def test_a_query_selects_rows(native_lake: str) -> None:
    source = LakeRows(native_lake, query="width_meta > 1 and label == 'cat'")
    assert source.size == 2
    assert [item.key for item in source] == ["a.tar/key2", "a.tar/key3"]
    with pytest.raises(LakeError, match="cannot be used"):
        LakeRows(native_lake, query="nothing == 3")


def make_lake(path: Path, schema: dict[str, Any], rows: dict[str, list[Any]]) -> str:
    deeplake = engine.deeplake()
    dataset = deeplake.create(str(path), schema=schema)
    dataset.append(rows)
    dataset.commit()
    return str(path)


def test_a_foreign_lake(tmp_path: Path) -> None:
    types = engine.deeplake().types
    path = make_lake(
        tmp_path / "foreign",
        {
            "key": "text",
            "photo": types.Image(sample_compression="jpeg"),
            "thumb": "bytes",
            "alt": "text",
            "score": "float32",
            "vector": types.Embedding(2),
            "more": types.Sequence(types.Text()),
            "numbers": types.Sequence(types.Int32()),
            "about": types.Dict(),
        },
        {
            "key": ["same", "same"],
            "photo": [picture(1), picture(2)],
            "thumb": [b"x", b"y"],
            "alt": ["a cat", ""],
            "score": [0.5, float("nan")],
            "vector": np.asarray([[1, 2], [3, 4]], np.float32),  # type: ignore[dict-item]
            "more": [["x"], ["y"]],
            "numbers": [[1], [2, 3]],
            "about": [{"n": 1}, {"n": 2}],
        },
    )
    source = LakeRows(path)
    first, second = source
    # A column called `key` need not identify a row.
    assert first == Sample(
        "0",
        picture(1),
        ("a cat",),
        {"key": "same", "score": 0.5, "vector": [1.0, 2.0], "about": {"n": 1}},
    )
    assert isinstance(second, Sample)
    assert (second.key, second.captions, second.metadata["score"]) == ("1", (), None)
    assert set(source.ignored) == {
        "column more (sequence[text])",
        "column numbers (sequence[int32])",
        "column thumb (bytes)",
    }


def test_urls_in_a_foreign_lake(tmp_path: Path) -> None:
    types = engine.deeplake().types
    path = make_lake(
        tmp_path / "urls", {"link": "text", "caption": "text"}, {"link": [URL, "x"], "caption": ["a", "b"]}
    )
    assert list(LakeRows(path)) == [
        Sample("0", b"", ("a",), {"link": URL}, URL),
        Rejected("urls: row 1", "not an address: x"),
    ]
    schema = {"picture": types.Link(types.Image()), "caption": "text"}
    path = make_lake(tmp_path / "links", schema, {"picture": [URL], "caption": ["a"]})
    (item,) = LakeRows(path)
    assert isinstance(item, Sample)
    assert (item.url, item.captions) == (URL, ("a",))


def test_columns_can_be_chosen_and_are_listed_in_errors(tmp_path: Path) -> None:
    schema, rows = {"a": "bytes", "b": "text"}, {"a": [picture(1)], "b": ["a cat"]}
    path = make_lake(tmp_path / "odd", schema, rows)
    (item,) = LakeRows(path, image_column="a", caption_columns=["b"])
    assert item == Sample("0", picture(1), ("a cat",), {})
    with pytest.raises(SourceError, match=r"a \(bytes\), b \(text\)"):
        LakeRows(path)


def test_a_damaged_image_is_rejected(tmp_path: Path) -> None:
    path = str(tmp_path / "lake")
    fill_lake([Samples("x", [sample(i) for i in range(3)], 3)], path)
    dataset = engine.deeplake().open(path)
    dataset["image"][1] = picture(9)
    dataset.commit()
    del dataset
    _, bad, _ = LakeRows(path)
    assert isinstance(bad, Rejected)
    assert bad.key == "lake: row 1"
    assert bad.reason.startswith("damaged image: its checksum")


def test_is_lake(native_lake: str, tmp_path: Path) -> None:
    assert is_lake(native_lake)
    assert is_lake(f"{native_lake}@main")
    assert is_lake("hub://someone/photos")
    assert is_lake("s3://bucket/photos")
    assert not is_lake(str(tmp_path))
    assert not is_lake("https://example.org/photos.tar")
    assert not is_deeplake3(native_lake)


@pytest.fixture
def deeplake3_folder(tmp_path: Path) -> str:
    with zipfile.ZipFile(DEEPLAKE3_ZIP) as archive:
        archive.extractall(tmp_path / "old")
    return str(tmp_path / "old")


def test_a_deep_lake_3_dataset_is_converted(deeplake3_folder: str, tmp_path: Path) -> None:
    assert is_deeplake3(deeplake3_folder)
    assert not is_lake(deeplake3_folder)
    source = DeepLake3Rows(deeplake3_folder)
    rows = [item for item in source if isinstance(item, Sample)]
    assert [row.captions for row in rows] == [
        ("a red circle",),
        ("a green square",),
        ("a blue circle",),
        ("a red square",),
    ]
    assert rows[3].metadata == {
        "labels": 1,
        "score": 0.75,
        "boxes": [[6, 4, 16, 16]],
        "labels_name": "square",
    }
    assert all(row.image.startswith(b"\xff\xd8\xff") for row in rows)
    assert [suffix.partition(" (")[0] for suffix in source.ignored] == ["column masks"]
    report = fill_lake([DeepLake3Rows(deeplake3_folder)], str(tmp_path / "new"))
    assert (report.rows, report.rejected) == (4, [])
    lake = open_lake(tmp_path / "new", query="labels_name == 'square'")
    assert [row.captions for row in lake.read([0, 1])] == [("a green square",), ("a red square",)]
    assert lake.images([0]) == [rows[1].image]


def test_a_query_on_a_deep_lake_3_dataset(deeplake3_folder: str) -> None:
    assert [item.key for item in DeepLake3Rows(deeplake3_folder, query="labels == 0")] == ["0", "2"]
    with pytest.raises(LakeError, match="cannot be used"):
        DeepLake3Rows(deeplake3_folder, query="label == 0")


def test_a_damaged_deep_lake_3_dataset_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dataset_meta.json").write_text("{")
    with pytest.raises(LakeError, match="cannot read the Deep Lake 3 dataset"):
        DeepLake3Rows(str(tmp_path))
