"""Annotation files: COCO, Karpathy, LLaVA, and JSON without a layout of its own."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources import Rejected, Sample
from lakeclip.ingestion.sources.annotations.source import AnnotationFiles
from lakeclip.ingestion.sources.base import account_of
from lakeclip.ingestion.sources.open import open_sources
from tests.unit.lake.sample_files import picture, write_files

IMAGES = {f"images/{i}.jpg": picture(i) for i in range(3)}
COCO = {
    "info": {"year": 2014},
    "images": [
        {"id": 7, "file_name": "0.jpg", "license": 3},
        {"id": 5, "file_name": "1.jpg"},
        {"id": 9, "file_name": "2.jpg"},
    ],
    "annotations": [
        {"image_id": 5, "id": 1, "caption": "A dog. "},
        {"image_id": 7, "id": 2, "caption": "A cat."},
        {"image_id": 7, "id": 3, "caption": "A black cat."},
        {"image_id": 7, "id": 4, "caption": " "},
        {"image_id": 1000, "id": 5, "caption": "Nothing."},
    ],
}


def read(folder: Path, content: object, name: str = "data.json", **options: str) -> tuple[list[Sample], list[Rejected]]:
    """Write a JSON file, read it as any command does, and check its account."""
    text = content if isinstance(content, str) else json.dumps(content)
    write_files(folder, {**({} if "/" in name else IMAGES), name: text})
    (source,) = open_sources([str(folder / name)], **options)
    items = list(source)
    account_of(source).check(name)
    return [item for item in items if isinstance(item, Sample)], [item for item in items if isinstance(item, Rejected)]


def test_coco_captions(tmp_path: Path) -> None:
    samples, rejected = read(tmp_path, COCO)
    assert [(sample.image, sample.captions) for sample in samples] == [
        (picture(0), ("A cat.", "A black cat.")),
        (picture(1), ("A dog.",)),
    ]
    assert samples[0].metadata == {"filepath": "0.jpg", "image_id": 7, "license": 3}
    assert [item.reason for item in rejected] == ["no caption: 2.jpg"]
    (source,) = open_sources([str(tmp_path / "data.json")])
    assert len(list(source)) == 3
    assert account_of(source).to_dict()["captions"] == {
        "read": 5,
        "used": 3,
        "left_out": {"caption is empty": 1, "caption of an image that is not listed": 1},
    }


def test_coco_folders(tmp_path: Path) -> None:
    """Images are in train2014 beside annotations, as COCO's archives unpack, or elsewhere."""
    write_files(tmp_path, {f"train2014/{i}.jpg": picture(i) for i in range(3)})
    write_files(tmp_path, {f"val2014/{i}.jpg": picture(9) for i in range(3)})
    table = "annotations/captions_train2014.json"
    samples, _ = read(tmp_path, COCO, table)
    assert [sample.image for sample in samples] == [picture(0), picture(1)], "of the split in the table's name"
    samples, _ = read(tmp_path, COCO, table, image_root=str(tmp_path / "val2014"))
    assert [sample.image for sample in samples] == [picture(9), picture(9)]


@pytest.mark.parametrize(
    ("annotations", "found"),
    [
        ([{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}], "1 boxes or masks of objects in 1 categories"),
        ([{"image_id": 7, "category_id": 1, "keypoints": [0, 0, 1]}], "1 keypoints in 1 categories"),
        ([], "images without annotations"),
    ],
)
def test_coco_without_captions(tmp_path: Path, annotations: list[object], found: str) -> None:
    content = {"images": COCO["images"], "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    write_files(tmp_path, {"captions_val2017.json": json.dumps(COCO)})
    with pytest.raises(SourceError, match=r"instances_val2017\.json holds no captions") as caught:
        read(tmp_path, content, "instances_val2017.json")
    assert found in caught.value.found
    assert caught.value.next_step == f"lakeclip ingest {tmp_path}/captions_val2017.json LAKE"


def test_karpathy_split(tmp_path: Path) -> None:
    images = [
        {
            "filepath": "images",
            "sentids": [0, 1],
            "filename": f"{i}.jpg",
            "imgid": i,
            "split": split,
            "sentences": [
                {"tokens": ["a", "cat"], "raw": "A cat.", "imgid": i, "sentid": 0},
                {"tokens": ["two", "cats"]},
            ],
        }
        for i, split in enumerate(["train", "restval"])
    ]
    content = {"images": [*images, {"filename": "2.jpg", "sentences": []}], "dataset": "coco"}
    samples, rejected = read(tmp_path, content, "dataset_coco.json")
    assert [sample.image for sample in samples] == [picture(0), picture(1)]
    assert samples[0].captions == ("A cat.", "two cats")
    assert samples[1].metadata == {"filepath": "images/1.jpg", "imgid": 1, "split": "restval"}
    assert [item.reason for item in rejected] == ["no caption: 2.jpg"]


def test_llava_conversations(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    more = [{"from": "human", "value": "Its colour?"}, {"from": "gpt", "value": "Black."}]
    content = [
        {"id": "a", "image": "images/0.jpg", "conversations": turns + more},
        {"id": "b", "image": "images/1.jpg", "conversations": turns},
        {"id": "c", "conversations": turns},
    ]
    samples, rejected = read(tmp_path, content)
    assert [(sample.image, sample.captions) for sample in samples] == [(picture(i), ("A cat.",)) for i in range(2)]
    assert samples[0].metadata["conversations"] == turns + more, "nothing is lost"
    assert [item.reason for item in rejected] == ["no image in this row"]
    (source,) = open_sources([str(tmp_path / "data.json")])
    list(source)
    assert any("first answer of the model in conversations; 1 later answers" in note for note in source.notes)  # type: ignore[attr-defined]


def test_conversations_of_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "<image>Describe."}, {"role": "assistant", "content": "A dog."}]
    line = json.dumps({"images": ["images/2.jpg"], "messages": turns})
    (sample,), _ = read(tmp_path, f"{line}\n", "data.jsonl")
    assert (sample.image, sample.captions) == (picture(2), ("A dog.",))


@pytest.mark.parametrize(
    "content",
    [
        {"0.jpg": "A cat.", "1.jpg": ["A dog.", "Two dogs."]},
        [{"image": "0.jpg", "caption": "A cat."}, {"image": "1.jpg", "caption": ["A dog.", "Two dogs."]}],
        {"version": 1, "data": [{"file": "0", "text": "A cat."}, {"file": "1", "text": ["A dog.", "Two dogs."]}]},
        {"image": {"0": "0.jpg", "1": "1.jpg"}, "caption": {"0": ["A cat."], "1": ["A dog.", "Two dogs."]}},
        {"image": ["0.jpg", "1.jpg"], "caption": [["A cat."], ["A dog.", "Two dogs."]]},
        {
            "columns": ["image", "caption"],
            "index": [0, 1],
            "data": [["0.jpg", "A cat."], ["1.jpg", ["A dog.", "Two dogs."]]],
        },
    ],
)
def test_json_without_a_layout_of_its_own(tmp_path: Path, content: object) -> None:
    samples, rejected = read(tmp_path, content)
    assert [(sample.image, sample.captions) for sample in samples] == [
        (picture(0), ("A cat.",)),
        (picture(1), ("A dog.", "Two dogs.")),
    ]
    assert not rejected


def test_an_object_about_one_image(tmp_path: Path) -> None:
    (sample,), _ = read(tmp_path, {"image": "0.jpg", "caption": "A cat.", "regions": [{"x": 1, "caption": "A tail."}]})
    assert (sample.image, sample.captions) == (picture(0), ("A cat.",))


def test_json_lines_with_the_suffix_of_json(tmp_path: Path) -> None:
    lines = [{"captions": ["A cat.", "Two."], "image": "0.jpg"}, {"captions": ["A dog."], "image": "1.jpg"}]
    samples, _ = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert [sample.captions for sample in samples] == [("A cat.", "Two."), ("A dog.",)]


def test_options_apply_to_annotations(tmp_path: Path) -> None:
    content = {"data": [{"image": "0.jpg", "alt": "un café", "label": "cat"}]}
    write_files(tmp_path, {**IMAGES, "a.json": json.dumps(content, ensure_ascii=False).encode("utf-16-le")})
    (source,) = open_sources([f"{tmp_path}/a.json"], encoding="utf-16-le", caption_template="{alt} of a {label}")
    (sample,) = source
    assert isinstance(sample, Sample)
    assert sample.captions == ("un café of a cat",)


def test_compressed_annotations(tmp_path: Path) -> None:
    write_files(tmp_path, {**IMAGES, "data.json.gz": gzip.compress(json.dumps(COCO).encode())})
    (source,) = open_sources([f"{tmp_path}/data.json.gz"])
    assert isinstance(source, AnnotationFiles)
    assert sum(isinstance(item, Sample) for item in source) == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": [1, 2]}', "an object with a"),
        ('{"images": [{"file_name": "a.jpg", "id": 1}', "Expecting"),
        ('{"a": {"b": {}}}', "an object with a"),
    ],
)
def test_json_that_is_nothing_of_this(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(tmp_path, text)
    assert found in caught.value.found
