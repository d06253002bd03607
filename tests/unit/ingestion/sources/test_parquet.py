"""Parquet tables: LAION metadata, Hugging Face images, and unusual types."""

from __future__ import annotations

import datetime
import decimal
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakeclip.errors import SourceError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.folder.records import Rejected
from tests.unit.lake.sample_files import picture, write_files

URL = "https://example.org/1.jpg"
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> Tables:
    pq.write_table(pa.table(columns), path, **options)
    return Tables([str(path)])


def test_laion_metadata(tmp_path: Path) -> None:
    source = write_table(
        tmp_path / "laion.parquet",
        {
            "SAMPLE_ID": [7, 8, 9],
            "URL": [URL, f"{URL}2", None],
            "TEXT": ["a cat", "", "a cow"],
            "WIDTH": [640, None, 1],
            "similarity": pa.array([0.25, float("nan"), 0.5], pa.float32()),
            "NSFW": ["UNLIKELY", None, "NSFW"],
        },
    )
    assert source.mapping == {
        "image address": "URL",
        "caption": "TEXT",
        "also kept": "SAMPLE_ID, WIDTH, similarity, NSFW",
    }
    first, second, third = source
    metadata = {"SAMPLE_ID": 7, "URL": URL, "WIDTH": 640, "similarity": 0.25, "NSFW": "UNLIKELY"}
    assert first == Sample("0", b"", ("a cat",), metadata, URL)
    assert isinstance(second, Sample)
    assert second.captions == ()
    assert (second.metadata["WIDTH"], second.metadata["similarity"], second.metadata["NSFW"]) == (None, None, None)
    assert third == Rejected("laion.parquet: row 2", "no image in this row")


def test_hugging_face_images(tmp_path: Path) -> None:
    write_files(tmp_path, {"beside/3.jpg": picture(3)})
    features = {"label": {"names": ["frog", "toad"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    schema = pa.schema(
        [("image", HF_IMAGE), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [
        {"bytes": picture(1), "path": "1.jpg"},
        {"bytes": picture(2), "path": None},
        {"bytes": None, "path": "beside/3.jpg"},
        {"bytes": None, "path": "beside/4.jpg"},
        None,
    ]
    table = pa.table({"image": images, "label": [0, 1, -1, 0, 0]}, schema=schema)
    pq.write_table(table, tmp_path / "train.parquet")
    source = Tables([str(tmp_path / "train.parquet")])
    assert source.mapping == {"image": "image", "caption": "none", "also kept": "label, label_name"}
    assert list(source) == [
        Sample("0", picture(1), (), {"label": 0, "label_name": "frog"}),
        Sample("1", picture(2), (), {"label": 1, "label_name": "toad"}),
        Sample("2", picture(3), (), {"label": -1, "label_name": None}),
        Rejected("train.parquet: row 3", f"image not found: beside/4.jpg (tried in {tmp_path})"),
        Rejected("train.parquet: row 4", "no image in this row"),
    ]


def test_several_captions_and_plain_bytes(tmp_path: Path) -> None:
    source = write_table(
        tmp_path / "t.parquet",
        {"jpg": [picture(1), picture(2)], "caption": [["a cat", "a dog"], []], "thumbnail": [b"x", b"y"]},
    )
    assert list(source) == [
        Sample("0", picture(1), ("a cat", "a dog"), {}),
        Rejected("t.parquet: row 1", "caption is empty"),
    ]
    assert source.ignored == {"column thumbnail (bytes)": 1}


def test_rows_with_several_images_are_rejected(tmp_path: Path) -> None:
    images = [[picture(1)], [picture(1), picture(2)], []]
    source = write_table(tmp_path / "t.parquet", {"images": images, "text": ["a", "b", "c"]})
    assert list(source) == [
        Sample("0", picture(1), ("a",), {}),
        Rejected("t.parquet: row 1", "2 images in one row"),
        Rejected("t.parquet: row 2", "no image in this row"),
    ]


def test_unusual_types_become_text_or_json(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.timezone.utc)
    columns = {
        "url": [URL],
        "text": pa.array(["a cat"]).dictionary_encode(),
        "price": pa.array([decimal.Decimal("1.50")]),
        "when": pa.array([moment.replace(tzinfo=None)], pa.timestamp("ns")),
        "nanoseconds": pa.array([1], pa.timestamp("ns")),
        "zone": pa.array([moment], pa.timestamp("us", "Europe/Berlin")),
        "day": pa.array([moment.date()]),
        "took": pa.array([3], pa.duration("ns")),
        "box": pa.array([[1.5, float("nan")]]),
        "exif": [{"at": moment.date(), "iso": 100, "raw": b"\x01"}],
        "history": pa.array([[1]], pa.list_(pa.timestamp("ns"))),
        "half": pa.array([0.5], pa.float32()).cast(pa.float16()),
        "big": pa.array([2**64 - 1], pa.uint64()),
        "nothing": pa.nulls(1),
    }
    (item,) = write_table(tmp_path / "t.parquet", columns)
    assert isinstance(item, Sample)
    assert item.captions == ("a cat",)
    assert item.metadata == {
        "url": URL,
        "price": "1.50",
        "when": "2024-05-06 07:08:09.000000000",
        "nanoseconds": "1970-01-01 00:00:00.000000001",
        "zone": "2024-05-06 07:08:09.000000Z",
        "day": "2024-05-06",
        "took": 3,
        "box": [1.5, None],
        "exif": {"at": "2024-05-06", "iso": 100, "raw": "01"},
        "history": ["1970-01-01 00:00:00.000000001"],
        "half": 0.5,
        "big": 2**64 - 1,
        "nothing": None,
    }


def test_rows_are_written_to_a_lake(tmp_path: Path) -> None:
    rows = 300
    source = write_table(
        tmp_path / "t.parquet",
        {
            "image": [picture(i) for i in range(rows)],
            "caption": [f"no. {i}" for i in range(rows)],
            "when": pa.array(range(rows), pa.timestamp("ns")),
            "box": [[i, i + 1] for i in range(rows)],
        },
        row_group_size=70,
    )
    fill_lake([source], str(tmp_path / "lake"))
    lake = open_lake(tmp_path / "lake")
    assert lake.column("key") == [str(i) for i in range(rows)]
    assert lake.values("box", [7]) == ["[7, 8]"]
    assert lake.images([0, 299]) == [picture(0), picture(299)]
    assert set(lake.column("source")) == {"t.parquet"}


def test_reading_continues_after_a_broken_file(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.parquet") for i in range(3)]
    for path in paths:
        write_table(Path(path), {"url": [URL] * 1000, "caption": [f"{os.urandom(20).hex()}" for _ in range(1000)]})
    data = bytearray(Path(paths[1]).read_bytes())
    data[1000:20000] = b"\xff" * 19000
    Path(paths[1]).write_bytes(data)
    Path(paths[0]).write_bytes(b"not Parquet")
    source = Tables(paths)
    items = list(source)
    bad = [item for item in items if isinstance(item, Rejected)]
    assert [item.key for item in bad] == paths[:2]
    assert bad[0].reason.startswith("not a usable table")
    assert bad[1].reason.startswith("broken file")
    assert len(items) >= 1002
    assert [part for part, _ in source.completed] == ["2.parquet"]
    with pytest.raises(SourceError, match="cannot be read as a Parquet file"):
        Tables(paths[:1])


def test_files_may_have_different_columns(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")
    write_table(Path(first), {"url": [URL], "caption": ["a cat"]})
    pq.write_table(pa.table({"x": [1]}), second)
    _, bad = Tables([first, second])
    assert isinstance(bad, Rejected)
    assert bad.reason.startswith("not a usable table")
    assert "x (int64)" in bad.reason
