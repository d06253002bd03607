"""What kind of source a name stands for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakeclip.errors import SourceError
from lakeclip.lake.ingest import fill_lake
from lakeclip.lake.sources.base import Sample, Samples, Source, stamp
from lakeclip.lake.sources.files import name_parts
from lakeclip.lake.sources.folder import FolderPairs
from lakeclip.lake.sources.lakes import LakeRows
from lakeclip.lake.sources.open import open_sources
from lakeclip.lake.sources.tables import Tables
from lakeclip.lake.sources.webdataset import Shards
from tests.unit.lake.pairs import picture, sample, write_files, write_tar

URL = "https://example.org/1.jpg"


def parquet(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"url": [URL], "caption": ["a cat"]}), path)
    return path


def tar(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tar(path, [("0.jpg", picture()), ("0.txt", "a cat")])


def opened(*names: Path | str) -> list[Source]:
    return open_sources([str(name) for name in names])


def test_the_kinds_of_sources(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    fill_lake([Samples("x", [sample()], 1)], lake)
    pairs = write_files(tmp_path / "pairs", {"a.jpg": b"x", "a.txt": b"x"})
    table = write_files(tmp_path, {"t.csv": f"url,caption\n{URL},x\n"}) / "t.csv"
    sources = opened(pairs, tar(tmp_path / "s.tar"), table, parquet(tmp_path / "p.parquet"), lake)
    assert [type(source) for source in sources] == [LakeRows, FolderPairs, Shards, Tables]
    assert all(isinstance(source, Source) for source in sources)
    assert sources[-1].name == f"{table} … {tmp_path}/p.parquet"


def test_patterns_and_folders_of_tables(tmp_path: Path) -> None:
    for i in range(3):
        parquet(tmp_path / f"data/train-{i:05d}.parquet")
    write_files(tmp_path / "data", {".cache/x.jpg": b"x", "README.md": b"x", "notes.csv": b"x"})
    for name in (
        tmp_path / "data",
        tmp_path / "data/*.parquet",
        f"{tmp_path}/data/train-{{00000..00002}}.parquet",
    ):
        (source,) = opened(name)
        assert [item.key for item in source] == ["0"] * 3
        assert [part for part, _ in source.ended] == [f"data/train-{i:05d}.parquet" for i in range(3)]


def test_what_img2dataset_writes_are_shards(tmp_path: Path) -> None:
    for i in range(2):
        tar(tmp_path / f"out/{i:05d}.tar")
        parquet(tmp_path / f"out/{i:05d}.parquet")
        (tmp_path / f"out/{i:05d}_stats.json").write_text(json.dumps({"count": 1}))
    (source,) = opened(tmp_path / "out")
    assert isinstance(source, Shards)
    assert sum(isinstance(item, Sample) for item in source) == 2
    assert source.ignored == {".parquet": 2}


def test_a_query_is_for_lakes(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    fill_lake([Samples("x", [sample(i, label=i) for i in range(4)], 4)], lake)
    (source,) = open_sources([lake], query="label > 1")
    assert source.size == 2
    with pytest.raises(SourceError, match="a query chooses rows of a lake"):
        open_sources([lake, str(parquet(tmp_path / "p.parquet"))], query="label > 1")


def test_columns_are_for_tables(tmp_path: Path) -> None:
    (source,) = open_sources([str(parquet(tmp_path / "p.parquet"))], image_column="url", caption_column="caption")
    assert source.mapping["caption"] == "caption"
    with pytest.raises(SourceError, match="has no columns to choose from"):
        open_sources([str(tar(tmp_path / "s.tar"))], image_column="url")


@pytest.mark.parametrize("name", ["https://example.org/a.tar", "pipe:cat a.tar", "a.zip", "nowhere"])
def test_what_is_no_source(name: str) -> None:
    with pytest.raises(SourceError, match="cannot"):
        open_sources([name])


def test_no_source() -> None:
    with pytest.raises(SourceError, match="no source was given"):
        open_sources([])


def test_parts_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tar(tmp_path / name) for name in ("a/1.tar", "b/1.tar", "b/2.tar")]
    parquet(tmp_path / "a/x/1.parquet")
    parquet(tmp_path / "a/y/1.parquet")
    for folder in ("a", "b"):
        write_files(tmp_path / f"{folder}/photos", {"1.jpg": b"x", "1.txt": b"x"})
    folders = [tmp_path / "a/photos", tmp_path / "b/photos"]
    sources = opened(*folders, *paths, tmp_path / "a/*/1.parquet")
    parts = [part for source in sources for part in dict.fromkeys(source.part for _ in source)]
    assert parts == ["a/photos", "b/photos", "a/1.tar", "b/1.tar", "b/2.tar", "x/1.parquet", "y/1.parquet"]


def test_shards_that_are_in_the_lake_are_passed_over(tmp_path: Path) -> None:
    paths = [tar(tmp_path / f"{i}.tar") for i in range(3)]
    os.truncate(paths[2], 3000)
    (source,) = opened(*paths)
    assert sum(isinstance(item, Sample) for item in source) >= 2
    ended = [(f"{tmp_path.name}/{path.name}", stamp(str(path))) for path in paths[:2]]
    assert source.ended == ended, "the last is cut short"
    (again,) = opened(*paths)
    again.skip_parts([("renamed/0.tar", ended[0][1]), (ended[1][0], 5)])
    left = dict.fromkeys(os.path.basename(again.part) for _ in again)
    assert left.keys() == {"1.tar", "2.tar"}, "1.tar was another; where 0.tar lies does not matter"
    assert again.position == again.size


@pytest.mark.parametrize(
    ("paths", "parts"),
    [
        (["/a/x.tar"], ["a/x.tar"]),
        (["/a/x.tar", "/a/x.tar"], ["a/x.tar", "a/x.tar"]),
        (["/z/a/x.tar", "/z/b/x.tar"], ["a/x.tar", "b/x.tar"]),
        (["/a/n/x", "/b/n/x", "/a/m/x", "/y"], ["a/n/x", "b/n/x", "a/m/x", "y"]),
        (["s3://one/lake", "s3://two/lake/"], ["one/lake", "two/lake"]),
        (["/x", "/a/x"], ["x", "a/x"]),
    ],
)
def test_names_stay_the_same_with_others_beside_them(paths: list[str], parts: list[str]) -> None:
    assert name_parts(paths) == parts
