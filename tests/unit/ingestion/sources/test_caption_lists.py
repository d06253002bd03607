"""Lists of captions (Flickr8k, Flickr30k, ROCO, Kaggle), and rows that name the same image."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.ingestion.sources import Rejected, Sample
from lakeclip.ingestion.sources.base import account_of
from lakeclip.ingestion.sources.open import open_sources
from tests.unit.lake.sample_files import picture, write_files


def read(
    folder: Path, name: str, text: str, images: str = "Images/{}.jpg"
) -> tuple[list[Sample], list[Rejected], list[str]]:
    write_files(folder, {name: text, **{images.format(i): picture(i) for i in range(3)}})
    (source,) = open_sources([str(folder / name)])
    items = list(source)
    account_of(source).check(name)
    rejected = [item for item in items if isinstance(item, Rejected)]
    return [item for item in items if isinstance(item, Sample)], rejected, getattr(source, "notes", [])


CAPTIONS = [(picture(0), ("A cat.", "A black cat.")), (picture(1), ("A dog, alone.",))]


@pytest.mark.parametrize(
    ("name", "text", "images"),
    [
        ("captions.txt", 'image,caption\n0.jpg,A cat.\n0.jpg,A black cat.\n1.jpg,"A dog, alone."\n', "Images/{}.jpg"),
        ("Flickr8k.token.txt", "0.jpg#0\tA cat.\n0.jpg#1\tA black cat.\n1.jpg#0\tA dog, alone.\n", "{}.jpg"),
        (
            "Flickr8k_text/Flickr8k.token.txt",
            "0.jpg#0\tA cat.\n0.jpg#1\tA black cat.\n1.jpg#0\tA dog, alone.\n",
            "Flicker8k_Dataset/{}.jpg",
        ),
        (
            "results.csv",
            "image_name| comment_number| comment\n0.jpg| 0| A cat.\n0.jpg| 1| A black cat.\n1.jpg| 0| A dog, alone.\n",
            "flickr30k_images/{}.jpg",
        ),
        (
            "results_20130124.token",
            "0.jpg#0\tA cat.\n0.jpg#1\tA black cat.\n1.jpg#0\tA dog, alone.\n",
            "flickr30k-images/{}.jpg",
        ),
        ("captions.tsv", "0\tA cat.\n0\tA black cat.\n1\tA dog, alone.\n", "images/{}.jpg"),
        ("captions.txt", "0\tA cat.\n0\tA black cat.\n1\tA dog, alone.\n", "images/{}.jpg"),
        ("list.txt", "0.jpg|A cat.\n0.jpg|A black cat.\n1.jpg|A dog, alone.\n", "{}.jpg"),
        ("styles.csv", 'id,name\n0,A cat.\n0,A black cat.\n1,"A dog, alone."\n', "images/{}.jpg"),
    ],
)
def test_rows_of_one_image_are_its_captions(tmp_path: Path, name: str, text: str, images: str) -> None:
    samples, rejected, notes = read(tmp_path, name, text, images)
    assert [(sample.image, sample.captions) for sample in samples] == CAPTIONS
    assert not rejected
    assert any("1 rows that name the image of the row before them are its further captions" in note for note in notes)


def test_rows_of_one_image_that_lie_apart_are_rows_and_a_note_says_so(tmp_path: Path) -> None:
    text = "image,caption\n0.jpg,A cat.\n1.jpg,A dog.\n0.jpg,A black cat.\n0.jpg,A tail.\n"
    samples, _, notes = read(tmp_path, "t.csv", text, "{}.jpg")
    assert [sample.captions for sample in samples] == [("A cat.",), ("A dog.",), ("A black cat.", "A tail.")]
    assert any("1 rows name an image that rows further up name" in note and "sort the table" in note for note in notes)


def test_rows_with_other_data_stay_rows(tmp_path: Path) -> None:
    samples, _, _ = read(tmp_path, "t.csv", "image,caption,region\n0.jpg,A cat.,1 2\n0.jpg,A tail.,5 6\n", "{}.jpg")
    assert [sample.captions for sample in samples] == [("A cat.",), ("A tail.",)]


def test_numbers_of_captions_are_left_out_and_other_numbers_stay(tmp_path: Path) -> None:
    samples, _, _ = read(tmp_path, "t.csv", "image,index,caption\n0.jpg,8,A cat.\n1.jpg,9,A dog.\n", "{}.jpg")
    assert [sample.metadata["index"] for sample in samples] == [8, 9]
    samples, _, _ = read(tmp_path, "u.csv", "image,index,caption\n0.jpg,0,A cat.\n0.jpg,1,A dog.\n", "{}.jpg")
    assert [sample.metadata for sample in samples] == [{"image": "0.jpg"}]
    (source,) = open_sources([f"{tmp_path}/u.csv"])
    list(source)
    assert source.mapping == {"image file or address": "image", "caption": "caption"}, "index is not kept"


def test_an_image_that_is_not_found_leaves_all_its_rows_out(tmp_path: Path) -> None:
    write_files(tmp_path, {"t.csv": "image,caption\n9.jpg,A cat.\n9.jpg,Two.\n0.jpg,A dog.\n", "0.jpg": picture()})
    (source,) = open_sources([f"{tmp_path}/t.csv"])
    rejected, sample = source
    assert isinstance(rejected, Rejected)
    assert rejected.reason == f"image not found: 9.jpg (tried in {tmp_path})"
    assert isinstance(sample, Sample)
    assert account_of(source).to_dict()["rows"] == {"read": 3, "used": 1, "left_out": {"image not found": 2}}


def test_broken_lines_of_a_token_list(tmp_path: Path) -> None:
    text = "0.jpg#0\tA cat.\nno token\n\n1.jpg#0\tA dog.\n2.jpg#0\t\n"
    samples, rejected, _ = read(tmp_path, "Flickr8k.token.txt", text)
    assert [sample.key for sample in samples] == ["0", "2"]
    assert [item.reason.partition(":")[0] for item in rejected] == [
        "not a line of NAME#NUMBER and a caption",
        "caption is empty",
    ]


def test_numbers_as_names_keep_their_zeros(tmp_path: Path) -> None:
    write_files(tmp_path, {"t.csv": "id,name\n007,A spy.\n", "images/007.jpg": picture(7), "images/7.jpg": picture(8)})
    (source,) = open_sources([f"{tmp_path}/t.csv"])
    (sample,) = source
    assert isinstance(sample, Sample)
    assert sample.image == picture(7)


def test_any_other_text_file_is_refused(tmp_path: Path) -> None:
    from lakeclip.errors import SourceError

    write_files(tmp_path, {"notes.txt": "Bought milk, bread.\n"})
    with pytest.raises(SourceError, match="cannot ingest"):
        open_sources([f"{tmp_path}/notes.txt"])
