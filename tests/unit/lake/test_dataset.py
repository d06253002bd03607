from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.errors import LakeError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.engine import deeplake, open_dataset
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.rows import Row
from tests.unit.lake.sample_files import picture

INFO = ImageInfo("jpeg", 24, 16)
LABELS = ("cat", "dog", "frog")


def make(path: Path, count: int = 30, first: int = 0) -> Path:
    with LakeWriter(str(path)) as writer:
        for i in range(first, first + count):
            writer.append(Sample(f"k{i}", picture(i), (f"caption {i}", "x"), {"label": LABELS[i % 3], "n": i}), INFO)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("lakes") / "lake")


def test_rows_are_read_by_index(path: Path) -> None:
    lake = open_lake(path)
    assert len(lake) == lake.num_total_rows == 30
    assert lake.columns["image"] == "bytes"
    assert lake.columns["label"] == "text"
    assert (lake.image_column, lake.caption_column) == ("image", "captions")
    rows = lake.read([7, 2, 7, 29])
    assert rows == [Row(i, picture(i), (f"caption {i}", "x")) for i in (7, 2, 7, 29)]
    assert lake.read(np.array([3], np.int32)) == lake.read([3])
    assert lake.read([]) == []
    assert lake.column("n") == list(range(30))
    assert lake.values("n", [4, 1]) == [4, 1]
    assert lake.captions([5]) == [("caption 5", "x")]
    assert lake.images([5]) == [picture(5)]
    assert lake[-1]["key"] == "k29"
    assert lake[0]["image"] == picture(0)
    for outside in ([30], [-1]):
        with pytest.raises(IndexError):
            lake.read(outside)
    with pytest.raises(IndexError):
        lake[30]


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.lists(st.text(), max_size=4), st.text()), min_size=1, max_size=30)
)
@settings(max_examples=25)
def test_rows_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bytes, list[str], str]]
) -> None:
    lake_path = tmp_path_factory.mktemp("lake")
    with LakeWriter(str(lake_path)) as writer:
        for image, captions, label in rows:
            writer.append(Sample(label, image, tuple(captions), {"label": label}), INFO)
    lake = open_lake(lake_path)
    assert [(row.image, list(row.captions)) for row in lake.read(range(len(lake)))] == [row[:2] for row in rows]
    assert lake.column("label") == lake.column("key") == [label for _, _, label in rows]
    assert lake.column("text") == [captions[0] if captions else "" for _, captions, _ in rows]
    shutil.rmtree(lake_path)


@pytest.mark.parametrize(
    ("clause", "rows"),
    [
        ("label == 'cat'", list(range(0, 30, 3))),
        ("n >= 27 and label != 'cat'", [28, 29]),
        ("key == 'k4'", [4]),
        ("format == 'jpeg' and n < 2", [0, 1]),
        ("\"key\" == 'k4';", [4]),
        ("n in (3, 5)", [3, 5]),
        ("contains(text, 'caption 2') and n > 20", list(range(21, 30))),
        ("label == 'label' or n == 1", [1]),
        ("n > 3 limit 2", [4, 5]),
        ("n > 27 order by n desc", [29, 28]),
        ("n == 3 -- three", [3]),
        ("n > 100", []),
        ("WHERE n > 27", [28, 29]),
        ("select * where n > 27", [28, 29]),
        ("SELECT * FROM lake WHERE label == 'from' or n in (3, 5) ORDER BY n DESC", [5, 3]),
        ("select *\nlimit 2 offset 4", [4, 5]),
        ("select *;", list(range(30))),
    ],
)
def test_a_query_keeps_row_numbers_of_the_lake(path: Path, clause: str, rows: list[int]) -> None:
    lake = open_lake(path, clause)
    assert len(lake) == len(rows)
    assert lake.num_total_rows == 30
    assert lake.query == clause
    assert [row.row for row in lake.read(range(len(lake)))] == rows
    assert lake.column("n") == rows


def test_a_select_chooses_and_renames_columns(path: Path) -> None:
    lake = open_lake(path, 'select image, label as caption, n AS "number" where n < 3')
    assert lake.columns == {"image": "bytes", "caption": "text", "number": "int64"}
    assert lake.caption_column == "caption"
    assert lake.read([1]) == [Row(1, picture(1), ("dog",))]
    assert lake.column("number") == [0, 1, 2]
    assert set(lake[2]) == {"image", "caption", "number"}
    with pytest.raises(LakeError, match="has no column 'key'"):
        lake.column("key")
    assert pickle.loads(pickle.dumps(lake)).read([1]) == lake.read([1])


def test_unusable_rows_are_excluded(tmp_path: Path) -> None:
    with LakeWriter(str(tmp_path / "lake")) as writer:
        for i in range(6):
            writer.append(Sample(f"k{i}", picture(i), ("a",), {"n": i}, unusable="HTTP 404" if i % 2 else ""), INFO)
    assert open_lake(tmp_path / "lake").column("n") == [0, 2, 4]
    assert open_lake(tmp_path / "lake", "n > 1 limit 2").column("n") == [2, 4]
    assert open_lake(tmp_path / "lake", include_unusable=True).column("n") == list(range(6))
    assert open_lake(tmp_path / "lake", "n < 2", include_unusable=True).column("unusable") == ["", "HTTP 404"]


@pytest.mark.parametrize(
    ("name", "values", "kept"),
    [
        ("NSFW", ["UNLIKELY", "NSFW", "UNSURE", ""], [0]),
        ("nsfw", ["unlikely", "UNLIKELY", "likely", "o'"], [1]),
        ("nsfw", ["unlikely", "Unlikely", "likely", "o'"], [0, 1]),
        ("NSFW", [False, True, False, True], [0, 2]),
        ("NSFW", [0.1, 0.2, 0.3, 0.4], "does not tell which"),
        ("NSFW", ["safe", "unsafe", "", ""], "no row .* is marked as safe"),
        ("punsafe", ["UNLIKELY", "", "", ""], "no column NSFW"),
    ],
)
def test_the_nsfw_filter_keeps_the_safe_rows_and_filters_nothing_else(
    tmp_path: Path, name: str, values: list[object], kept: list[int] | str
) -> None:
    with LakeWriter(str(tmp_path / "lake")) as writer:
        for i, value in enumerate(values):
            writer.append(Sample(f"{i}", picture(i), ("a",), {name: value, "WIDTH": 1, "n": i}), INFO)
    if isinstance(kept, str):
        with pytest.raises(LakeError, match=kept):
            open_lake(tmp_path / "lake", filter_nsfw=True)
        return
    assert open_lake(tmp_path / "lake", filter_nsfw=True).column("n") == kept
    assert open_lake(tmp_path / "lake", "n > 0", filter_nsfw=True).column("n") == [n for n in kept if n > 0]


@pytest.mark.parametrize(
    ("template", "column", "expected"),
    [
        ("a photo of {label}, {text}", None, ("a photo of cat, caption 3",)),
        ("{captions} ({n:03d})", None, ("caption 3 (003)", "x (003)")),
        ("{{{n}}}", None, ("{3}",)),
        ("{n} {price:.2f}!", None, ("3 !",)),
        (None, "label, text", ("cat caption 3",)),
        (None, "label", ("cat",)),
    ],
)
def test_captions_from_columns(
    tmp_path: Path, template: str | None, column: str | None, expected: tuple[str, ...]
) -> None:
    with LakeWriter(str(tmp_path / "lake")) as writer:
        for i in range(5):
            price = {} if i == 3 else {"price": 5}
            metadata = {"label": LABELS[i % 3], "n": i, **price}
            writer.append(Sample(f"k{i}", picture(i), (f"caption {i}", "x"), metadata), INFO)
    lake = open_lake(tmp_path / "lake", caption_column=column, caption_template=template)
    assert lake.captions([3]) == [expected]
    assert pickle.loads(pickle.dumps(lake)).read([3])[0].captions == expected


@pytest.mark.parametrize("template", ["{lable}", "no column", "{", "{0}", "{}", "{label.__class__}", "{n:xyz}"])
def test_an_invalid_template_raises_and_lists_the_columns(path: Path, template: str) -> None:
    with pytest.raises(LakeError, match="caption template") as caught:
        open_lake(path, caption_template=template)
    assert "label (text)" in caught.value.allowed


@pytest.mark.parametrize(
    ("clause", "found"),
    [
        ("nsfw == 'x'", "nsfw"),
        ("Lable == 'x'", "did you mean label"),
        ("n = = 3", "syntax error"),
        ("n == 'x'", "Can't compare"),
        ('label == "cat"', "single quotes"),
        ("where", "empty"),
        ("select n + 1 where n > 1", "not a column"),
        ("select nothing", "does not exist"),
        ('select * from "another/lake" where n > 1', "reads only the lake"),
        ("select n, count(*) group by n", "group"),
        ("n > 1 group by n", "group"),
        ("select distinct n", "distinct"),
        ("select * union select *", "union"),
        ("select * where n > 1 limit x", "left side"),
        ("", "empty"),
        ("random() < 0.5", "random choice"),
        ("n > 1 order by RANDOM()", "random choice"),
        ("n > 1) or (n < 5", "syntax error"),
    ],
)
def test_an_invalid_query_raises_and_lists_the_columns(path: Path, clause: str, found: str) -> None:
    with pytest.raises(LakeError, match="cannot be used") as caught:
        open_lake(path, clause)
    assert found in caught.value.found
    assert "label (text)" in caught.value.allowed
    assert "n (int64)" in caught.value.allowed


def test_a_query_on_an_empty_lake(tmp_path: Path) -> None:
    deeplake().create(str(tmp_path / "empty"), schema={"text": deeplake().types.Text()}).commit()
    assert len(open_lake(tmp_path / "empty")) == len(open_lake(tmp_path / "empty", "text == 'x'")) == 0


def read_in_process(lake: Lake, indices: list[int]) -> tuple[list[Row], str, list[object]]:
    return lake.read(indices), lake.version, lake.column("n")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_another_process_reads_the_same_rows_of_the_same_version(tmp_path: Path, method: str) -> None:
    """Pin the version, unlike a pickled Deep Lake handle, and the rows, unlike a pickled view.

    In a fresh process: a fork of this one would lack the threads that other tests have left, and their locks.
    """
    code = f"from tests.unit.lake.test_dataset import *; read_in_other_processes({str(tmp_path)!r}, {method!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def read_in_other_processes(folder: str, method: str) -> None:
    lake = open_lake(make(Path(folder) / "lake"), "n >= 10")
    here = lake.read([0, 5])
    dataset = deeplake().open(lake.path)
    dataset.append({name: dataset[name][0:30] for name in lake.columns})
    dataset.commit("more")
    assert len(open_lake(lake.path, "n >= 10")) == 40
    with multiprocessing.get_context(method).Pool(2) as pool:
        for rows, version, numbers in pool.starmap(read_in_process, [(lake, [0, 5])] * 3):
            assert rows == here
            assert version == lake.version
            assert numbers == list(range(10, 30))
    assert open_lake(lake.path).version != lake.version


def test_a_replaced_lake_is_detected(tmp_path: Path) -> None:
    copy = pickle.dumps(open_lake(make(tmp_path / "lake")))
    shutil.rmtree(tmp_path / "lake")
    make(tmp_path / "lake", first=50)
    with pytest.raises(LakeError, match=r"was replaced by another|no longer has the version"):
        pickle.loads(copy).read([0])


def test_reading_opens_a_closed_lake_again(path: Path) -> None:
    with open_lake(path) as lake:
        before = lake.read([1])
    assert lake.read([1]) == before


def test_a_token_is_kept_only_in_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVELOOP_TOKEN", "")
    lake = open_lake(path, token="s3cret-token")
    assert os.environ["ACTIVELOOP_TOKEN"] == "s3cret-token"
    assert b"s3cret" not in pickle.dumps(lake)
    assert "s3cret" not in repr(lake) + lake.version + lake.path + repr(vars(lake))


def test_a_flipped_bit_is_detected(tmp_path: Path) -> None:
    """Compare images with lakeclip's checksums: Deep Lake has none, and returns damaged bytes."""
    make(tmp_path / "lake")
    name, _ = max(open_dataset(str(tmp_path / "lake"))._datafiles, key=lambda item: int(item[1]))
    file = tmp_path / "lake" / name
    data = bytearray(file.read_bytes())
    data[data.index(picture(11)) + 100] ^= 1
    file.write_bytes(data)
    lake = open_lake(tmp_path / "lake")
    good, bad, also_good = lake.read([10, 11, 12])
    assert "checksum" in bad.damage
    assert (good.damage, also_good.damage) == ("", "")


def other_lake(path: Path, **columns: tuple[object, list[object]]) -> Lake:
    dataset = deeplake().create(str(path), schema={name: kind for name, (kind, _) in columns.items()})
    dataset.append({name: values for name, (_, values) in columns.items()})
    dataset.commit()
    return open_lake(path)


def test_lakes_that_lakeclip_did_not_write(tmp_path: Path) -> None:
    types = deeplake().types
    images = [picture(i) for i in range(3)]
    a = other_lake(
        tmp_path / "a", Images=(types.Image(sample_compression="jpeg"), images), TEXT=(types.Text(), ["a", "", "c"])
    )
    assert (a.image_column, a.caption_column) == ("Images", "TEXT")
    assert a.columns == {"Images": "image", "TEXT": "text"}
    assert a.read([2, 0]) == [Row(2, images[2], ("c",)), Row(0, images[0], ("a",))]
    assert a.read([1])[0].captions == ()
    assert a[1]["Images"] == images[1]
    b = other_lake(tmp_path / "b", jpg=(types.Bytes(), images), captions=(types.Text(), ['["x", "y"]', "plain", ""]))
    assert [row.captions for row in b.read([0, 1, 2])] == [("x", "y"), ("plain",), ()]
    c = other_lake(
        tmp_path / "c", photograph=(types.Image(sample_compression="jpeg"), images), titel=(types.Text(), ["t"] * 3)
    )
    assert c.image_column == "photograph"
    assert open_lake(c.path, caption_column="titel").read([1])[0].captions == ("t",)
    for name, message in (("nope", "does not exist"), ("photograph", "is of type image")):
        with pytest.raises(LakeError, match=message):
            _ = open_lake(c.path, caption_column=name).caption_column
    with pytest.raises(LakeError, match="has no usable caption column") as caught:
        c.read([0])
    assert "photograph (image), titel (text)" in caught.value.found


def test_urls_are_not_images(tmp_path: Path) -> None:
    types = deeplake().types
    lake = other_lake(
        tmp_path / "a", URL=(types.Text(), ["http://x/1.jpg"]), TEXT=(types.Text(), ["a"]), n=(types.Int64(), [1])
    )
    with pytest.raises(LakeError, match="no usable image column") as caught:
        _ = lake.image_column
    assert "URL holds addresses" in caught.value.next_step
    assert "n (int64)" in caught.value.found


def test_sequences_of_text_are_never_read(tmp_path: Path) -> None:
    """Raise instead: they make Deep Lake 4.7 crash in half of all runs."""
    types = deeplake().types
    lake = other_lake(
        tmp_path / "a", captions=(types.Sequence(types.Text()), [["a", "b"]]), image=(types.Bytes(), [b"x"])
    )
    assert lake.columns["captions"] == "sequence[text]"
    assert "captions" not in lake[0]
    with pytest.raises(LakeError, match="cannot be read"):
        lake.column("captions")
    with pytest.raises(LakeError, match="no usable caption column"):
        _ = lake.caption_column


def test_an_unknown_column_raises_and_lists_the_columns(path: Path) -> None:
    with pytest.raises(LakeError, match="no column 'Label'") as caught:
        open_lake(path).column("Label")
    assert "label (text)" in caught.value.found


@pytest.mark.parametrize(
    ("name", "found"),
    [("nowhere", "does not exist"), ("file", "a file"), ("folder", "a folder with a.jpg"), ("v3", "Deep Lake 3")],
)
def test_the_error_for_a_path_without_a_lake_describes_it(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "file").touch()
    for made in ("folder/a.jpg", "v3/dataset_meta.json"):
        (tmp_path / made).parent.mkdir()
        (tmp_path / made).touch()
    with pytest.raises(LakeError, match="there is no Deep Lake dataset") as caught:
        open_lake(tmp_path / name)
    assert found in caught.value.found
    assert caught.value.next_step


def test_branches_and_tags(path: Path) -> None:
    assert len(open_lake(f"{path}@main")) == 30
    with pytest.raises(LakeError, match="a branch or tag that the dataset does not have"):
        open_lake(f"{path}@other")


def test_an_unknown_url_scheme_raises() -> None:
    with pytest.raises(LakeError, match="cannot open ftp://x/y") as caught:
        open_lake("ftp://x/y")
    assert "s3://" in caught.value.allowed
