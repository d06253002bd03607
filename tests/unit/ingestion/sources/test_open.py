"""Opening sources: formats, patterns, folders, parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakeclip.errors import SourceError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample, Samples, Source, file_fingerprint
from lakeclip.ingestion.sources.files import name_parts
from lakeclip.ingestion.sources.folder import FolderPairs
from lakeclip.ingestion.sources.lakes import LakeRows
from lakeclip.ingestion.sources.open import expand, open_sources
from lakeclip.ingestion.sources.registry import source_formats
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.ingestion.sources.webdataset import Shards
from tests.unit.lake.sample_files import picture, sample, write_files, write_tar

URL = "https://example.org/1.jpg"


def write_parquet(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"url": [URL], "caption": ["a cat"]}), path)
    return path


def write_shard(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tar(path, [("0.jpg", picture()), ("0.txt", "a cat")])


def open_all(*names: Path | str) -> list[Source]:
    return open_sources([str(name) for name in names])


def test_every_format_is_recognized(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    fill_lake([Samples("x", [sample()], 1)], lake)
    pairs = write_files(tmp_path / "pairs", {"a.jpg": b"x", "a.txt": b"x"})
    table = write_files(tmp_path, {"t.csv": f"url,caption\n{URL},x\n"}) / "t.csv"
    sources = open_all(pairs, write_shard(tmp_path / "s.tar"), table, write_parquet(tmp_path / "p.parquet"), lake)
    assert [type(source) for source in sources] == [LakeRows, FolderPairs, Shards, Tables]
    assert all(isinstance(source, Source) for source in sources)
    assert sources[-1].name == f"{table} … {tmp_path}/p.parquet"


def test_patterns_and_folders_of_tables(tmp_path: Path) -> None:
    for i in range(3):
        write_parquet(tmp_path / f"data/train-{i:05d}.parquet")
    write_files(tmp_path / "data", {".cache/x.jpg": b"x", "README.md": b"x", "notes.csv": b"x"})
    for name in (
        tmp_path / "data",
        tmp_path / "data/*.parquet",
        f"{tmp_path}/data/train-{{00000..00002}}.parquet",
    ):
        (source,) = open_all(name)
        assert [item.key for item in source] == ["0"] * 3
        assert [part for part, _ in source.completed] == [f"data/train-{i:05d}.parquet" for i in range(3)]


def test_braces_and_wildcards_are_expanded(tmp_path: Path) -> None:
    for name in ("t-0008.tar", "t-0009.tar", "t-0010.tar", "v-1.tar", "{1,2}.tar", "[ab].tar"):
        (tmp_path / name).touch()
    base = str(tmp_path)
    assert expand(f"{base}/t-{{0008..0010}}.tar") == [f"{base}/t-{n}.tar" for n in ("0008", "0009", "0010")]
    assert expand(f"{base}/t-*.tar") == [f"{base}/t-{n}.tar" for n in ("0008", "0009", "0010")]
    assert expand(f"{base}/{{v-1,t-0009}}.tar") == [f"{base}/v-1.tar", f"{base}/t-0009.tar"]
    assert expand(f"{base}/x{{9..11}}") == [f"{base}/x9", f"{base}/x10", f"{base}/x11"]
    assert expand(f"{base}/{{a,b}}{{0..1}}") == [f"{base}/{name}" for name in ("a0", "a1", "b0", "b1")]
    with pytest.raises(SourceError, match="no file matches"):
        expand(f"{base}/w-*.tar")


@pytest.mark.parametrize("name", ["{once}", "{1,2}.tar", "[ab].tar", "open{1,2", "close1,2}", r"back\slash"])
def test_literal_braces_and_existing_files_are_not_expanded(tmp_path: Path, name: str) -> None:
    for existing in ("{1,2}.tar", "[ab].tar"):
        (tmp_path / existing).touch()
    assert expand(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}"]


def test_output_of_img2dataset_is_read_as_shards(tmp_path: Path) -> None:
    for i in range(2):
        write_shard(tmp_path / f"out/{i:05d}.tar")
        write_parquet(tmp_path / f"out/{i:05d}.parquet")
        (tmp_path / f"out/{i:05d}_stats.json").write_text(json.dumps({"count": 1}))
    (source,) = open_all(tmp_path / "out")
    assert isinstance(source, Shards)
    assert sum(isinstance(item, Sample) for item in source) == 2
    assert source.ignored == {".parquet": 2, ".json": 2}


def test_a_query_applies_only_to_lakes(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    fill_lake([Samples("x", [sample(i, label=i) for i in range(4)], 4)], lake)
    (source,) = open_sources([lake], query="label > 1")
    assert source.size == 2
    with pytest.raises(SourceError, match=r"a query selects rows of a lake, but .*p\.parquet is not one"):
        open_sources([lake, str(write_parquet(tmp_path / "p.parquet"))], query="label > 1")


def test_columns_can_be_chosen_only_for_tables_and_lakes(tmp_path: Path) -> None:
    (source,) = open_sources([str(write_parquet(tmp_path / "p.parquet"))], image_column="url", caption_column="caption")
    assert source.mapping["caption"] == "caption"
    with pytest.raises(SourceError, match="--image-column does not apply"):
        open_sources([str(write_shard(tmp_path / "s.tar"))], image_column="url")


@pytest.mark.parametrize("name", ["https://example.org/a.tar", "pipe:cat a.tar", "a.zip", "nowhere"])
def test_the_error_for_an_unknown_source_lists_every_format(name: str) -> None:
    with pytest.raises(SourceError, match="cannot") as caught:
        open_sources([name])
    assert all(known.description in caught.value.allowed for known in source_formats())


def test_no_source() -> None:
    with pytest.raises(SourceError, match="no source was given"):
        open_sources([])


def test_files_with_the_same_name_become_different_parts(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / name) for name in ("a/1.tar", "b/1.tar", "b/2.tar")]
    write_parquet(tmp_path / "a/x/1.parquet")
    write_parquet(tmp_path / "a/y/1.parquet")
    for folder in ("a", "b"):
        write_files(tmp_path / f"{folder}/photos", {"1.jpg": b"x", "1.txt": b"x"})
    folders = [tmp_path / "a/photos", tmp_path / "b/photos"]
    sources = open_all(*folders, *paths, tmp_path / "a/*/1.parquet")
    parts = [part for source in sources for part in dict.fromkeys(source.part for _ in source)]
    assert parts == ["a/photos", "b/photos", "a/1.tar", "b/1.tar", "b/2.tar", "x/1.parquet", "y/1.parquet"]


def test_completed_shards_are_skipped(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{i}.tar") for i in range(3)]
    os.truncate(paths[2], 3000)
    (source,) = open_all(*paths)
    assert sum(isinstance(item, Sample) for item in source) >= 2
    completed = [(f"{tmp_path.name}/{path.name}", file_fingerprint(str(path))) for path in paths[:2]]
    assert source.completed == completed, "the last shard is truncated"
    (again,) = open_all(*paths)
    again.skip_parts([completed[0], (completed[1][0], 5), ("other/2.tar", file_fingerprint(str(paths[2])))])
    parts = dict.fromkeys(os.path.basename(again.part) for _ in again)
    assert parts.keys() == {"1.tar", "2.tar"}, "the fingerprint of 1.tar differs, and the folder of 2.tar"
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
def test_parts_have_short_unique_names(paths: list[str], parts: list[str]) -> None:
    assert name_parts(paths) == parts
