"""Folders as people have them: pictures beside tables, tars with a picture, image folders, labelled folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.cli.app import main
from lakeclip.errors import SourceError
from lakeclip.ingestion.sources import Rejected, Sample, Source
from lakeclip.ingestion.sources.base import account_of
from lakeclip.ingestion.sources.folder import FolderPairs
from lakeclip.ingestion.sources.imagefolder import ImageFolders
from lakeclip.ingestion.sources.open import open_sources
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.ingestion.sources.webdataset import Shards
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.folder.source import open_folder
from tests.unit.lake.sample_files import picture, write_files, write_tar


def read(folder: Path, **options: str) -> tuple[Source, list[Sample], list[Rejected]]:
    (source,) = open_sources([str(folder)], **options)
    items = list(source)
    account_of(source).check(str(folder))
    return source, [i for i in items if isinstance(i, Sample)], [i for i in items if isinstance(i, Rejected)]


def write_shards(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_tar(folder / f"{number:05d}.tar", [(f"{number}.jpg", picture(number)), (f"{number}.txt", "a cat")])


# ── folders of tars, or tables, with pictures ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "beside",
    [
        {"preview.png": picture()},
        {"logo.jpg": picture(), "README.md": "x", "docs/a.webp": picture()},
        {"logo.jpg": picture(), "logo.txt": "a logo"},
        {"preview.png": picture(), "00000_stats.json": "{}", "notes.csv": "url,caption\nhttps://a.b/c.jpg,x\n"},
    ],
)
def test_a_picture_does_not_hide_tars(tmp_path: Path, beside: dict[str, bytes | str]) -> None:
    write_shards(tmp_path)
    write_files(tmp_path, beside)
    source, samples, rejected = read(tmp_path)
    assert isinstance(source, Shards)
    assert len(samples) == 2
    assert not rejected
    files = account_of(source).to_dict()["files"]
    assert isinstance(files, dict)
    assert (files["read"], files["used"]) == (2 + len(beside), 2)
    assert sum(files["left_out"].values()) == len(beside) == source.ignored.total()


def test_a_picture_does_not_hide_parquet(tmp_path: Path) -> None:
    """A dataset repository of Hugging Face: README.md, pictures for it, and data."""
    write_files(tmp_path, {"README.md": "x", "assets/teaser.png": picture()})
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": [picture(1)], "text": ["a cat"]}), tmp_path / "data/train-0.parquet")
    source, samples, _ = read(tmp_path)
    assert isinstance(source, Tables)
    assert [sample.image for sample in samples] == [picture(1)]
    assert source.ignored == {".png": 1, ".md": 1}


def test_a_tar_does_not_hide_many_pairs(tmp_path: Path) -> None:
    write_shards(tmp_path, 1)
    write_files(
        tmp_path,
        {f"{i}.{suffix}": picture(i) if suffix == "jpg" else "x" for i in range(3) for suffix in ("jpg", "txt")},
    )
    source, samples, _ = read(tmp_path)
    assert isinstance(source, FolderPairs)
    assert len(samples) == 3
    assert source.ignored == {".tar": 1}


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"images/1.jpg": picture(), "styles.csv": "id,name\n1,a cat\n"}, "styles.csv"),
        ({"Images/1.jpg": picture(), "captions.txt": "image,caption\n1.jpg,a cat\n", "notes.txt": "x"}, "captions.txt"),
        ({"1.jpg": picture(), "a.csv": "x,y\n1,2\n", "b.tsv": "file\tcaption\n1.jpg\ta cat\n"}, "b.tsv"),
        ({"1.jpg": picture(), "c.jsonl": '{"image": "1.jpg", "text": "a cat"}\n'}, "c.jsonl"),
        (
            {
                "val2017/1.jpg": picture(),
                "annotations/captions_val2017.json": json.dumps(
                    {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a"}]}
                ),
                "annotations/instances_val2017.json": json.dumps(
                    {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "bbox": []}]}
                ),
            },
            "annotations/captions_val2017.json",
        ),
    ],
)
def test_pictures_beside_tables_name_the_command(
    tmp_path: Path, files: dict[str, bytes | str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "my data", files)
    with pytest.raises(SourceError, match="1 images without captions of their own, and tables beside them") as caught:
        read(tmp_path / "my data")
    assert command in caught.value.found
    words = caught.value.next_step
    assert words == f"lakeclip ingest '{tmp_path}/my data/{command}' LAKE"
    assert len(read(tmp_path / "my data" / command)[1]) == 1, "the command works"


def test_pictures_beside_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.jpg": picture(), "a.csv": "x,y\n8,9\n"})
    with pytest.raises(SourceError, match="tables beside them") as caught:
        read(tmp_path, image_column=None)  # type: ignore[arg-type]
    assert "a.csv, none of which names its images" in caught.value.found
    assert caught.value.next_step.endswith("a.csv LAKE --image-column NAME")


@given(
    st.sets(
        st.tuples(
            st.sampled_from(["", "a", "images", "a/b"]),
            st.sampled_from(
                ["0.tar", "1.tar", "0.jpg", "1.png", "0.txt", "1.txt", "0.json", "0.jpg.txt", "t.csv", "n.md"]
            ),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_file_of_a_folder_is_counted(
    tmp_path_factory: pytest.TempPathFactory, names: set[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    contents: dict[str, bytes | str] = {".jpg": picture(), ".png": picture(1, "PNG"), ".json": '{"label": 1}'}
    for parent, name in names:
        if name.endswith(".tar"):
            (folder / parent).mkdir(parents=True, exist_ok=True)
            write_tar(folder / parent / name, [("0.jpg", picture()), ("0.txt", "a cat")])
        else:
            text = "file_name,text\n0.jpg,a cat\n" if name == "t.csv" else "a cat"
            write_files(folder / parent, {name: contents.get(os.path.splitext(name)[1], text)})
    try:
        source, samples, rejected = read(folder)
    except SourceError:
        return  # no images, or images beside tables, and nothing else
    assert account_of(source).read["files"] == len(names)
    assert samples or rejected


# ── captions from names of folders, and from JSON beside the images ─────────────────────────────────────────────────


def test_pictures_alone_offer_the_names_of_folders(tmp_path: Path) -> None:
    write_files(tmp_path, {"golden_retriever/1.jpg": picture(1), "cat/1.jpg": picture(2), "top.jpg": picture(3)})
    with pytest.raises(SourceError, match="contains no captions") as caught:
        read(tmp_path)
    assert caught.value.next_step == f"lakeclip ingest --caption-template 'a photo of a {{folder}}' {tmp_path} LAKE"
    _, samples, rejected = read(tmp_path, caption_template="a photo of a {folder}")
    assert not rejected
    assert [(sample.key, sample.captions, sample.metadata) for sample in samples] == [
        ("cat/1.jpg", ("a photo of a cat",), {"folder": "cat"}),
        ("golden_retriever/1.jpg", ("a photo of a golden retriever",), {"folder": "golden_retriever"}),
        ("top.jpg", (f"a photo of a {tmp_path.name.replace('_', ' ')}",), {"folder": tmp_path.name}),
    ]


def test_a_template_over_captions_and_json(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            **{f"{name}.jpg": picture() for name in "abc"},
            "a.txt": "a cat\ntwo cats\n",
            "a.json": json.dumps({"style": "oil", "width": 7}),
            "b.json": json.dumps({"style": "ink", "caption": "a dog"}),
        },
    )
    _, samples, _ = read(tmp_path, caption_template="{caption}, {style}")
    assert [sample.captions for sample in samples] == [("a cat, oil", "two cats, oil"), ("a dog, ink",), ()]
    assert samples[0].metadata == {"folder": tmp_path.name, "style": "oil", "width": 7}
    with pytest.raises(SourceError, match="colour is not known about the images") as caught:
        read(tmp_path, caption_template="{caption}, {colour}")
    assert "style" in caught.value.allowed


def test_json_beside_images(tmp_path: Path) -> None:
    contents = {
        "a": {"caption": "a cat", "url": "https://a.b/c"},
        "b": {"Caption": ["a dog", "two dogs"]},
        "c": ["a cow"],
        "d": "a pig",
        "e": {"TEXT": "a hen", "label": "hen"},
        "f": {"label": "fox"},
        "g": {},
    }
    write_files(tmp_path, {f"{name}.jpg": picture() for name in [*contents, "h"]})
    write_files(tmp_path, {f"{name}.json": json.dumps(content) for name, content in contents.items()} | {"h.json": "{"})
    _, samples, rejected = read(tmp_path)
    assert {sample.key: sample.captions for sample in samples} == {
        "a.jpg": ("a cat",),
        "b.jpg": ("a dog", "two dogs"),
        "c.jpg": ("a cow",),
        "d.jpg": ("a pig",),
        "e.jpg": ("a hen",),
        "f.jpg": (),
    }
    assert samples[0].metadata == {"url": "https://a.b/c"}
    assert [item.reason.partition(":")[0] for item in rejected] == ["caption is empty", "broken JSON"]
    chosen = read(tmp_path, caption_column="label")[1]
    assert {sample.key: sample.captions for sample in chosen if sample.captions} == {
        "e.jpg": ("hen",),
        "f.jpg": ("fox",),
    }
    in_place = open_folder(tmp_path)
    assert [row.captions[0] for row in in_place.read(range(len(in_place)))] == [
        "a cat",
        "a dog",
        "a cow",
        "a pig",
        "a hen",
    ]


def test_an_encoding_applies_to_caption_files(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": picture(), "a.txt": "猫".encode("gb18030")})
    _, (sample,), _ = read(tmp_path, encoding="gb18030")
    assert sample.captions == ("猫",)


@pytest.mark.parametrize(
    ("name", "hint"), [("a.jpg", "give the folder"), ("a.zip", "unpack it"), ("a.h5", "convert it")]
)
def test_files_that_no_format_reads_get_a_hint(tmp_path: Path, name: str, hint: str) -> None:
    write_files(tmp_path, {name: b"x"})
    with pytest.raises(SourceError, match="cannot ingest") as caught:
        open_sources([f"{tmp_path}/{name}"])
    assert hint in caught.value.next_step


# ── Hugging Face's image folders ────────────────────────────────────────────────────────────────────────────────────


def test_image_folders(tmp_path: Path) -> None:
    write_files(tmp_path, {f"train/{i}.jpg": picture(i) for i in range(3)})
    write_files(tmp_path, {f"test/sub/{i}.jpg": picture(10 + i) for i in range(2)})
    lines = [{"file_name": f"sub/{i}.jpg", "text": f"test {i}"} for i in range(2)]
    write_files(
        tmp_path,
        {
            "train/metadata.csv": "file_name,text,label\n0.jpg,a cat,1\n1.jpg,a dog,2\n9.jpg,a cow,2\n",
            "README.md": "x",
            "test/metadata.jsonl": "\n".join(map(json.dumps, lines)),
        },
    )
    source, samples, rejected = read(tmp_path)
    assert isinstance(source, ImageFolders)
    assert [(sample.image, sample.captions) for sample in samples] == [
        (picture(10), ("test 0",)),
        (picture(11), ("test 1",)),
        (picture(0), ("a cat",)),
        (picture(1), ("a dog",)),
    ]
    assert [sample.metadata["split"] for sample in samples] == ["test", "test", "train", "train"]
    assert [item.reason.partition(":")[0] for item in rejected] == [
        "image not found",
        "image is not named in the metadata",
    ]
    assert rejected[1].key.endswith("2.jpg")
    assert source.ignored == {".md": 1}
    assert account_of(source).to_dict()["images"] == {
        "read": 5,
        "used": 4,
        "left_out": {"image is not named in the metadata": 1},
    }


def test_an_image_folder_with_parquet(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/1.jpg": picture(1)})
    pq.write_table(pa.table({"file_name": ["a/1.jpg"], "caption": ["a cat"]}), tmp_path / "metadata.parquet")
    _, (sample,), _ = read(tmp_path)
    assert (sample.image, sample.captions) == (picture(1), ("a cat",))


def test_other_metadata_beside_pairs_is_no_image_folder(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.jpg": picture(1), "1.txt": "a cat", "metadata.csv": "file_name,text\n1.jpg,a dog\n"})
    source, (sample,), _ = read(tmp_path)
    assert isinstance(source, FolderPairs)
    assert sample.captions == ("a cat",)
    assert source.ignored == {".csv": 1}


# ── from the command line ───────────────────────────────────────────────────────────────────────────────────────────


def test_flags_reach_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path, {f"pictures/{i}.jpg": picture(i) for i in range(2)})
    write_files(tmp_path, {"elsewhere/t.csv": "id;name;colour\n0;cat;black\n1;dog;white\n2;cow;red\n"})
    main(
        f"ingest {tmp_path}/elsewhere/t.csv {tmp_path}/lake --image-root {tmp_path}/pictures --image-column id "
        "--delimiter ; --caption-column name --caption-column colour".split()
    )
    lake = open_lake(f"{tmp_path}/lake")
    assert [row.captions for row in lake.read([0, 1])] == [("cat", "black"), ("dog", "white")]
    printed = capsys.readouterr().out
    assert "image not found" in printed
    assert f"(tried in {tmp_path}/pictures)" in printed.replace("\n", "")
    main(["ingest", f"{tmp_path}/pictures", f"{tmp_path}/named", "--caption-template", "one of the {folder}"])
    assert open_lake(f"{tmp_path}/named").read([1])[0].captions == ("one of the pictures",)


# ── keys of JSON in tars ────────────────────────────────────────────────────────────────────────────────────────────


CONTENTS: list[tuple[object, tuple[str, ...]]] = [
    ({"TEXT": "upper"}, ("upper",)),
    ({"alt": "alternative"}, ("alternative",)),
    ({"prompt": "a prompt"}, ("a prompt",)),
    ({"caption": None, "url": "u"}, ()),
    ({"captions": [{"text": "an object"}]}, ("an object",)),
    ({"Caption": "capital"}, ("capital",)),
    ({"caption": 7}, ("7",)),
    ({"captions": ["one", None, ""]}, ("one",)),
    (["a list"], ("a list",)),
    ({"caption": "", "text": "second"}, ("second",)),
]


def test_captions_in_the_json_of_a_tar(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", picture(i)) for i in range(len(CONTENTS))]
    members += [(f"{i}.json", json.dumps(content).encode()) for i, (content, _) in enumerate(CONTENTS)]
    _, samples, rejected = read(write_tar(tmp_path / "a.tar", sorted(members)))  # type: ignore[arg-type]
    assert [sample.captions for sample in samples] == [captions for _, captions in CONTENTS]
    assert not rejected


def test_chosen_keys_and_templates_of_tars(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("0.jpg", picture()),
            ("0.json", {"story": "long", "label": "cat", "caption": "short"}),
            ("0.txt", "a text"),
            ("1.jpg", picture()),
            ("1.json", {"label": "dog"}),
            ("2.jpg", picture()),
            ("2.txt", "alone"),
        ],
    )
    _, samples, rejected = read(path, caption_column="story")
    assert [sample.captions for sample in samples] == [("long",), ()]
    assert [item.reason for item in rejected] == ["no caption: no story"]
    _, samples, _ = read(path, caption_template="{txt} of a {label}")
    assert [sample.captions for sample in samples] == [("a text of a cat",), ("of a dog",), ("alone of a",)]
    assert samples[0].metadata["label"] == "cat"
    (source,) = open_sources([str(path)], caption_column=["story", "label"])
    assert [item.captions for item in source if isinstance(item, Sample)] == [("long", "cat"), ("dog",)]
