"""Paths of images in tables, as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.ingestion.sources.image_files import ImageFinder
from tests.unit.lake.sample_files import write_files


def finder(folder: Path, *files: str, table: str = "t.csv", root: str | None = None) -> ImageFinder:
    write_files(folder, {name: name.encode() for name in files})
    return ImageFinder(str(folder / table), str(folder / root) if root is not None else None)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg", " a.jpg "),
        ("a.jpg", "file://a.jpg"),
        ("sub/a.jpg", "sub/a.jpg"),
        ("sub/a.jpg", r"sub\a.jpg"),
        ("sub/a b.jpg", "sub/a%20b.jpg"),
        ("sub/a b.jpg", r"sub\a%20b.jpg"),
        ("100%25.jpg", "100%25.jpg"),
        ("a.JPG", "a.jpg"),
        ("A.jpg", "a.jpg"),
        ("Images/a.JPG", r"images\a.jpg"),
        ("images/1163.jpg", "1163"),
        ("images/1163.PNG", "1163"),
        ("images/1163.jpg", "1163.0"),
        ("images/v1.2.jpg", "v1.2"),
        ("Images/a.jpg", "a.jpg"),
        ("Images/Images/a.jpg", "a.jpg"),
        ("flickr30k_images/a.jpg", "a.jpg"),
        ("Flicker8k_Dataset/a.jpg", "a.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("a.jpg", "a.jpeg"),
        ("images/a.JPEG", "a.jpg"),
        ("images/a.webp", "/home/me/images/a.png"),
        ("images/a.jpg", "/home/me/images/a.jpg"),
        ("images/a.jpg", r"C:\Users\me\images\a.jpg"),
    ],
)
def test_names_that_are_found(tmp_path: Path, file: str, name: str) -> None:
    found = finder(tmp_path, file)
    assert found.read(name) == file.encode()
    assert found.has(name)


def test_a_table_in_a_folder_of_its_own(tmp_path: Path) -> None:
    files = ("images/a.jpg", "train2014/b.jpg", "val2014/c.jpg", "d.jpg")
    found = finder(tmp_path, *files, table="annotations/captions_val2014.json")
    for name, expected in (("a.jpg", "images/a.jpg"), ("c.jpg", "val2014/c.jpg"), ("d.jpg", "d.jpg")):
        assert found.read(name) == expected.encode()
    assert "image not found" in str(found.read("b.jpg")), "of another split"
    assert found.read("train2014/b.jpg") == b"train2014/b.jpg"


def test_a_root_is_the_only_folder(tmp_path: Path) -> None:
    found = finder(tmp_path, "a.jpg", "images/b.jpg", "elsewhere/c.jpg", root="elsewhere")
    assert found.read("c") == b"elsewhere/c.jpg"
    reason = found.read("a.jpg")
    assert reason == f"image not found: a.jpg (tried in {tmp_path}/elsewhere)"
    assert found.read("/data/of/another/machine/c.jpg") == b"elsewhere/c.jpg"


def test_the_folder_of_the_table_comes_first(tmp_path: Path) -> None:
    assert finder(tmp_path, "a.jpg", "images/a.jpg").read("a.jpg") == b"a.jpg"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (("a.jpg", "a.png"), "a"),
        (("images/a.jpg", "photos/a.jpg"), "a.jpg"),
        (("A.jpg", "a.JPG"), "a.jpg"),
        (("images/7.jpg", "images/7.webp"), "7"),
        (("images/7.jpg", "images/7.webp"), "7.png"),
    ],
)
def test_ambiguous_names_are_refused_with_the_candidates(tmp_path: Path, files: tuple[str, ...], name: str) -> None:
    found = finder(tmp_path, *files)
    reason = found.read(name)
    assert isinstance(reason, str)
    assert reason.startswith(f"image is ambiguous: {name} may be ")
    assert all(str(tmp_path / file) in reason for file in files)
    assert not found.has(name)


def test_a_neighbour_of_the_table_s_folder_is_another_data_set(tmp_path: Path) -> None:
    found = finder(tmp_path, "other_images/a.jpg", "images/b.jpg", table="mine/t.csv")
    assert "not found" in str(found.read("a.jpg"))
    assert "not found" in str(found.read("b.jpg"))


def test_links_to_one_file_are_not_ambiguous(tmp_path: Path) -> None:
    found = finder(tmp_path, "images/a.jpg")
    (tmp_path / "photos").symlink_to(tmp_path / "images")
    assert found.read("a.jpg") == b"images/a.jpg"


def test_other_suffixes_are_counted_and_the_written_one_comes_first(tmp_path: Path) -> None:
    found = finder(tmp_path, "a.jpg", "images/a.jpeg", "b.jpg", "c.jpg", "C.JPEG")
    for name, expected in (("a.jpeg", "images/a.jpeg"), ("b.jpeg", "b.jpg"), ("b.JPEG", "b.jpg"), ("c.jpeg", "C.JPEG")):
        assert found.read(name) == expected.encode()
    assert found.notes() == ["2 images are named with another suffix than their files have: .jpeg → .jpg"]


def test_names_that_are_not_found(tmp_path: Path) -> None:
    found = finder(tmp_path, "images/a.jpg", "notes.txt")
    reason = found.read("b.jpg")
    assert reason == f"image not found: b.jpg (tried in {tmp_path}, {tmp_path}/images)"
    assert "not found" in str(found.read("a\0b.jpg"))
    assert "not found" in str(found.read(""))
    assert not found.has("notes.txt"), "not an image"
    assert not found.has("notes")
