"""`LakeWriter`: columns, commits, failures and full disks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import lakeclip
from lakeclip.errors import LakeError, OutputError
from lakeclip.ingestion import writer as writer_module
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.engine import open_dataset
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.schema import MISSING_INT
from tests.unit.lake.sample_files import sample

INFO = ImageInfo("jpeg", 24, 16)


def write_batches(path: Path, *batches: list[Sample]) -> None:
    """Write a lake with one append per batch."""
    with LakeWriter(str(path)) as writer:
        for batch in batches:
            for item in batch:
                writer.append(item, INFO)
            writer._flush()


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        (["x", None, ""], "text", ["x", "", ""]),
        ([3, None, -4], "int64", [3, None, -4]),
        ([True, False], "bool", [True, False]),
        ([True, None], "int64", [1, None]),
        ([1, 2.5], "float64", [1.0, 2.5]),
        ([[1, "ä"], {"a": None}], "text", ['[1, "ä"]', '{"a": null}']),
        ([2**70, 1], "text", [str(2**70), "1"]),
    ],
)
@pytest.mark.parametrize("batched", [True, False])
def test_metadata_becomes_columns(
    tmp_path: Path, values: list[object], kind: str, stored: list[object], batched: bool
) -> None:
    samples = [sample(i, value=value) for i, value in enumerate(values)]
    write_batches(tmp_path / "lake", *([samples] if batched else [[item] for item in samples]))
    lake = open_lake(tmp_path / "lake")
    assert lake.columns["value"] == kind
    assert lake.column("value") == stored


@pytest.mark.parametrize(
    ("early", "late", "kind", "stored"),
    [
        (None, "x", "text", ["", "x"]),
        (None, 3, "int64", [None, 3]),
        (None, True, "int64", [None, 1]),
        (7, "x", "text", ["7", "x"]),
        (7, 0.5, "float64", [7.0, 0.5]),
        (2**60, 0.5, "text", [str(2**60), "0.5"]),
        (True, None, "int64", [1, None]),
        ("x", None, "text", ["x", ""]),
        (True, 5, "int64", [1, 5]),
    ],
)
def test_columns_are_widened_for_later_values(
    tmp_path: Path, early: object, late: object, kind: str, stored: list[object]
) -> None:
    first = sample(0) if early is None else sample(0, value=early)
    second = sample(1) if late is None else sample(1, value=late)
    write_batches(tmp_path / "lake", [first], [second])
    lake = open_lake(tmp_path / "lake")
    assert lake.columns["value"] == kind
    assert lake.column("value") == stored


def test_missing_values_can_be_queried(tmp_path: Path) -> None:
    """Rows older than a column hold the sentinel instead of NULL, which compares with nothing."""
    write_batches(tmp_path / "lake", [sample(0)], [sample(1, n=5, t="x", f=0.5)])
    for clause, rows in [
        ("n < 0", 1),
        (f"n == {MISSING_INT}", 1),
        ("n > 0", 1),
        ("t == ''", 1),
        ("f > 0", 1),
        ("f < 1", 1),
    ]:
        assert len(open_lake(tmp_path / "lake", clause)) == rows, clause


def test_metadata_with_reserved_names_is_renamed(tmp_path: Path) -> None:
    write_batches(tmp_path / "lake", [sample(0, width="wide", key=3, text="t")])
    lake = open_lake(tmp_path / "lake")
    assert (lake[0]["width"], lake[0]["width_meta"], lake[0]["key_meta"], lake[0]["text_meta"]) == (24, "wide", 3, "t")


def test_metadata_names_beyond_the_first_256_are_left_out_and_counted(tmp_path: Path) -> None:
    with LakeWriter(str(tmp_path / "lake")) as writer:
        for number in range(300):
            writer.append(sample(0, **{f"k{number}": number, "known": number}), INFO)
        writer.append(sample(1)._replace(unusable="not downloaded"), INFO)
    lake = open_lake(tmp_path / "lake", include_unusable=True)
    assert lake.column("known")[:300] == list(range(300))
    assert lake.column("unusable")[-1] == "not downloaded", "a column of our own"
    assert len(lake) == 301
    kept = [name for name in writer.columns if name.startswith("k") and name[1:].isdigit()]
    assert len(kept) == 255
    assert writer.changed.total() == 45
    assert writer.changed["column k255: left out, because the lake has 256 others"] == 1
    assert writer.changed["further columns: left out, because the lake has 256 others"] == 35
    again = lakeclip.ingest(tmp_path / "lake", tmp_path / "copy")
    assert again.rows == 301


def test_commit_messages_name_rows_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "ROWS_PER_APPEND", 10)
    monkeypatch.setattr(writer_module, "ROWS_PER_COMMIT", 40)
    with LakeWriter(str(tmp_path / "lake")) as writer:
        for i in range(100):
            writer.append(sample(0), INFO, f"{i // 30}.tar")
    dataset = open_dataset(str(tmp_path / "lake"))
    assert [version.message for version in dataset.history][2:] == [
        "rows 0-39 from 0.tar, 1.tar",
        "rows 40-79 from 1.tar, 2.tar",
        "rows 80-99 from 2.tar, 3.tar",
    ]


def test_uncommitted_rows_are_discarded_after_a_failure(tmp_path: Path) -> None:
    """Deep Lake commits pending rows when a dataset is closed, unless they are rolled back."""

    def fail() -> None:
        with LakeWriter(str(tmp_path / "lake")) as writer:
            writer.append(sample(0), INFO)
            writer.commit()
            writer.append(sample(1), INFO)
            writer._flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert len(open_lake(tmp_path / "lake")) == 1


def test_paths_where_no_lake_can_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot create a lake"):
        LakeWriter(str(tmp_path / "file" / "lake"))
    with pytest.raises(OutputError, match="an @ in the path"):
        LakeWriter(str(tmp_path / "me@home"))
    write_batches(tmp_path / "lake", [sample(0)])
    with pytest.raises(LakeError, match="there is already a lake"):
        LakeWriter(str(tmp_path / "lake"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def noise(count: int) -> list[Sample]:
    return [Sample(f"{i}", os.urandom(10_000), ("x",), {}) for i in range(count)]


def fill(path: Path) -> int:
    writer = LakeWriter(str(path))
    try:
        for item in noise(1_500):
            writer.append(item, INFO)
        writer.close()
    finally:
        writer.abandon()
    return writer.rows


def test_a_full_disk_is_detected_before_writing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "ROWS_PER_APPEND", 50)
    monkeypatch.setattr(writer_module, "ROWS_PER_COMMIT", 200)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        fill(small_disk / "lake")
    assert "MB free" in caught.value.found
    assert f"{small_disk}/lake holds 400 rows" in caught.value.found
    lake = open_lake(small_disk / "lake")
    assert len(lake.read(range(len(lake)))) == 400


def test_a_full_disk_is_detected_after_writing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep Lake reports no error and truncates its files; the lake goes back to the rows that it held before."""
    monkeypatch.setattr(writer_module, "SPARE_BYTES", -(2**40))
    monkeypatch.setattr(writer_module, "ROWS_PER_APPEND", 50)
    monkeypatch.setattr(writer_module, "ROWS_PER_COMMIT", 200)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        fill(small_disk / "lake")
    assert "bytes, not" in caught.value.found
    lake = open_lake(small_disk / "lake")
    assert len(lake) >= 200
    assert f"{small_disk}/lake holds {len(lake)} rows" in caught.value.found
    assert all(row.damage == "" for row in lake.read(range(len(lake))))


def test_an_incomplete_copy_of_a_lake_is_an_error(tmp_path: Path) -> None:
    write_batches(tmp_path / "lake", [sample(i) for i in range(20)])
    dataset = open_dataset(str(tmp_path / "lake"))
    name, size = max(dataset._datafiles, key=lambda item: int(item[1]))
    os.truncate(tmp_path / "lake" / name, size - 1)
    with pytest.raises(LakeError, match="is damaged or was not copied completely"):
        open_lake(tmp_path / "lake")
    (tmp_path / "lake" / name).unlink()
    with pytest.raises(LakeError, match="is missing"):
        open_lake(tmp_path / "lake")
