from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.folder import FolderPairs
from lakeclip.lake.folder.pairing import Pair, list_pairs
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.folder.source import open_folder
from lakeclip.lake.folder.stems import pair_closest
from tests.unit.lake.sample_files import picture, write_files


def pairs_of(tmp_path: Path, *names: str) -> list[Pair]:
    return list_pairs(str(write_files(tmp_path, dict.fromkeys(names, b"x")))).pairs


def test_a_stem_is_found_anywhere_below_one_parent(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, "foo/bar/image1.jpg", "mystery/folder/image1.txt", "a.b.png", "deep/a.b.txt")
    assert pairs == [Pair("a.b.png", "deep/a.b.txt"), Pair("foo/bar/image1.jpg", "mystery/folder/image1.txt")]


def test_any_image_suffix_in_any_case(tmp_path: Path) -> None:
    images = ["a.JPG", "b.Png", "c.webp", "d.GIF", "e.TIFF", "f.bmp"]
    assert len(pairs_of(tmp_path, *images, *(f"{name[0]}.TXT" for name in images))) == len(images)


def test_hidden_files_are_skipped_and_others_counted(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(["a.jpg", "a.txt", ".b.jpg", ".git/c.jpg", "._a.jpg", "n.md", "LICENSE"], b"x"))
    listing = list_pairs(str(tmp_path))
    assert listing.pairs == [Pair("a.jpg", "a.txt")]
    assert not listing.rejected
    assert listing.ignored == {".md": 1, "no suffix": 1}


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.jpg", "train/1.txt", "val/1.jpg", "val/1.txt"],
        ["train/images/1.jpg", "train/texts/1.txt", "val/images/1.jpg", "val/texts/1.txt"],
    ],
)
def test_colliding_stems_pair_with_what_is_pair_closest(tmp_path: Path, names: list[str]) -> None:
    write_files(tmp_path, dict.fromkeys(names, b"x"))
    listing = list_pairs(str(tmp_path))
    assert listing.pairs == [Pair(names[0], names[1]), Pair(names[2], names[3])]
    assert not listing.rejected
    (collision,) = listing.collisions
    assert collision.key == "1"
    assert set(collision.paths) == set(names)
    assert collision.outcome == "2 pairs found by folder"


@pytest.mark.parametrize(
    ("names", "paired", "left_out"),
    [
        (["a/1.jpg", "b/1.jpg", "1.txt"], [], {"a/1.jpg", "b/1.jpg", "1.txt"}),
        (["1.jpg", "1.png", "1.txt"], [], {"1.jpg", "1.png", "1.txt"}),
        (["1.jpg", "a/1.txt", "b/1.txt"], [], {"1.jpg", "a/1.txt", "b/1.txt"}),
        (["a/1.jpg", "a/1.txt", "b/1.jpg"], [Pair("a/1.jpg", "a/1.txt")], {"b/1.jpg"}),
        (["a/1.jpg", "a/1.txt", "b/1.txt"], [Pair("a/1.jpg", "a/1.txt")], {"b/1.txt"}),
    ],
)
def test_ambiguous_stems_are_excluded_and_reported(
    tmp_path: Path, names: list[str], paired: list[Pair], left_out: set[str]
) -> None:
    write_files(tmp_path, dict.fromkeys([*names, "good.jpg", "good.txt"], b"x"))
    listing = list_pairs(str(tmp_path))
    assert listing.pairs == [*paired, Pair("good.jpg", "good.txt")]
    assert {item.key for item in listing.rejected} == left_out
    for item in listing.rejected:
        assert any(name in item.reason for name in names if name != item.key), item
    assert set(listing.collisions[0].paths) == set(names)
    assert "left out" in listing.collisions[0].outcome


def test_unpaired_files_are_reported(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(["a.jpg", "a.txt", "b.jpg", "c.txt"], b"x"))
    assert list_pairs(str(tmp_path)).rejected == [
        Rejected("b.jpg", "no caption file"),
        Rejected("c.txt", "caption file without image"),
    ]


@pytest.mark.parametrize(
    ("names", "paired", "left_out"),
    [
        (["a.jpg", "a.jpg.txt"], [Pair("a.jpg", "a.jpg.txt")], []),
        (["a.jpg", "b/a.jpg.txt"], [Pair("a.jpg", "b/a.jpg.txt")], []),
        (["a.jpg", "a.caption"], [Pair("a.jpg", "a.caption")], []),
        (["a.jpg", "a.CAP"], [Pair("a.jpg", "a.CAP")], []),
        (["a.jpg", "a.json"], [Pair("a.jpg", "a.json")], []),
        (["a.jpg", "a.jpg.json"], [Pair("a.jpg", "a.jpg.json")], []),
        (["a.jpg", "texts/a.json"], [Pair("a.jpg", "texts/a.json")], []),
        (["a.jpg", "a.txt", "a.json"], [Pair("a.jpg", "a.txt", "a.json")], []),
        (["a.jpg", "a.txt", "a.caption"], [Pair("a.jpg", "a.txt")], ["a.caption"]),
        (["a.jpg", "a.txt", "a.jpg.txt"], [Pair("a.jpg", "a.txt")], ["a.jpg.txt"]),
        (
            ["a.jpg", "a.png", "a.jpg.txt", "a.png.txt"],
            [Pair("a.jpg", "a.jpg.txt"), Pair("a.png", "a.png.txt")],
            [],
        ),
        (["a.jpg", "a.png", "a.txt", "a.png.txt"], [Pair("a.jpg", "a.txt"), Pair("a.png", "a.png.txt")], []),
        (["a.jpg.png", "a.jpg.txt"], [Pair("a.jpg.png", "a.jpg.txt")], []),
        (
            ["x/a.jpg", "x/a.json", "y/a.jpg", "y/a.json"],
            [Pair("x/a.jpg", "x/a.json"), Pair("y/a.jpg", "y/a.json")],
            [],
        ),
    ],
)
def test_names_of_caption_files(tmp_path: Path, names: list[str], paired: list[Pair], left_out: list[str]) -> None:
    listing = list_pairs(str(write_files(tmp_path, dict.fromkeys([*names, "data.json"], b"x"))))
    assert listing.pairs == paired
    assert [item.key for item in listing.rejected] == left_out
    assert listing.ignored == {".json": 1}, "data.json belongs to no image"


def test_images_alone(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(["cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg", "dogs/2.txt"], b"x"))
    listing = list_pairs(str(tmp_path), all_images=True)
    assert listing.pairs == [Pair("cats/1.jpg", ""), Pair("dogs/1.jpg", ""), Pair("dogs/2.jpg", "dogs/2.txt")]
    assert not listing.rejected
    assert not listing.collisions, "each image has a folder of its own"


def test_unicode_names_are_normalized(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    assert len(pairs_of(tmp_path, f"{composed}.jpg", f"{decomposed}.txt")) == 1


def test_file_names_that_are_not_valid_text(tmp_path: Path) -> None:
    stem = os.fsdecode(b"\xff\xe9")
    assert pairs_of(tmp_path, f"{stem}.jpg", f"{stem}.txt", "é.jpg", "é.txt") == [
        Pair("é.jpg", "é.txt"),
        Pair(f"{stem}.jpg", f"{stem}.txt"),
    ]


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {"1.jpg": b"x", "1.txt": b"x"})
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to(tmp_path / "data")
    (tmp_path / "data/loop").symlink_to(tmp_path / "top")
    assert list_pairs(str(tmp_path / "top")).pairs == [Pair("link/1.jpg", "link/1.txt")]


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["", "a", "b", "a/c"]), st.sampled_from("xyz")),
        st.sets(
            st.sampled_from([".jpg", ".PNG", ".txt", ".md", ".caption", ".cap", ".jpg.txt", ".json", ".jpg.json"]),
            min_size=1,
        ),
        min_size=1,
    )
)
@settings(max_examples=80)
def test_every_file_is_paired_or_reported(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, str], set[str]]
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    names = [os.path.join(parent, stem + suffix) for (parent, stem), suffixes in tree.items() for suffix in suffixes]
    write_files(folder, dict.fromkeys(names, b"x"))
    try:
        listing = list_pairs(str(folder))
    except SourceError:
        return
    used = [path for pair in listing.pairs for path in pair if path]
    rejected = [item.key for item in listing.rejected]
    assert len(set(used + rejected)) == len(used + rejected)
    unused = set(names) - set(used + rejected)
    assert all(name.endswith((".md", ".json")) for name in unused)
    assert listing.ignored.total() == len(unused)
    images = [name for name in names if name.endswith((".jpg", ".PNG"))]
    with_images = [pair.image for pair in list_pairs(str(folder), all_images=True).pairs]
    assert sorted(with_images) == sorted(images), "with all_images every image is in a pair"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["is empty"]),
        ({"a.txt": b"x", "b.md": b"x"}, ["contains no images", "1 caption files", "1 .md"]),
        ({"a.jpg": b"x", "b.csv": b"x"}, ["contains no captions", "1 images", "1 .csv", ".txt"]),
        ({"a.jpg": b"x", "b.txt": b"x"}, ["no image in", "a.jpg", "b.txt"]),
    ],
)
def test_a_folder_without_pairs_raises_and_lists_its_files(
    tmp_path: Path, files: dict[str, bytes], words: list[str]
) -> None:
    with pytest.raises(SourceError) as caught:
        list_pairs(str(write_files(tmp_path, files)))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no folder"):
        list_pairs(str(tmp_path / "nowhere"))


def test_samples_have_the_bytes_and_bad_files_a_reason(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": picture(), "a.txt": "a cat\n\na dog\n", "b.jpg": picture(), "b.txt": " \n"})
    (tmp_path / "c.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "c.txt").write_text("x")
    source = FolderPairs(str(tmp_path), "photos")
    first, second, third = source
    assert first == Sample("a.jpg", picture(), ("a cat", "a dog"), {})
    assert second == Rejected("photos: b.jpg", "caption is empty: b.txt")
    assert isinstance(third, Rejected)
    assert third.reason.startswith("cannot be read")
    assert source.position == source.size == 3


def test_a_folder_can_be_read_without_a_lake(tmp_path: Path) -> None:
    write_files(
        tmp_path, {f"{i}.jpg": picture(i) for i in range(4)} | {f"t/{i}.txt": f"one {i}\ntwo" for i in range(4)}
    )
    (tmp_path / "3.jpg").write_bytes(b"")
    source = open_folder(tmp_path)
    assert len(source) == 3
    assert [row.image for row in source.read([2, 0])] == [picture(2), picture(0)]
    assert source.read([1])[0].captions == ("one 1", "two")
    assert source.column("key") == ["0.jpg", "1.jpg", "2.jpg"]
    assert source[-1]["text"] == "one 2"
    assert source.rejected == [Rejected("3.jpg", "empty file")]
    with pytest.raises(IndexError):
        source.read([3])
    with pytest.raises(SourceError, match="no column 'label'"):
        source.column("label")


def test_a_folders_version_changes_with_its_files(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": picture(1), "a.txt": "x"})
    first = open_folder(tmp_path).version
    assert open_folder(tmp_path).version == first
    (tmp_path / "a.txt").write_text("longer")
    assert open_folder(tmp_path).version != first


def test_a_file_that_is_removed_while_the_folder_is_open(tmp_path: Path) -> None:
    source = open_folder(write_files(tmp_path, {"a.jpg": picture(1), "a.txt": "x"}))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(SourceError, match="can no longer be read"):
        source.read([0])


def test_many_folders_with_the_same_names_are_paired_quickly() -> None:
    names = [f"{i}/photo" for i in range(20_000)]
    pairs, unpaired, ambiguous = pair_closest([f"{name}.jpg" for name in names], [f"{name}.txt" for name in names])
    assert len(pairs) == 20_000
    assert not any((*unpaired, *ambiguous))
