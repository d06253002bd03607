"""Robustness: scores equal zero-shot scores of the corrupted copies, and each image is decoded once."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation import robustness as module
from lakeclip.evaluation.corruptions import corrupt
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.robustness import RobustnessResult, Shift, ShiftedCopies, robustness
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.lake.rows import Row, RowSource
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.evaluation.fixtures import MemorySource, scenery, tiny_clip

TOKENIZE, TRANSFORM, TEMPLATES = Tokenizer(24), EvalTransform(32), find_templates("simple")


class CountingSource(MemorySource):
    """A source that counts the rows that are read."""

    num_read = 0

    def read(self, indices: Sequence[int], *, with_captions: bool = True) -> list[Row]:
        self.num_read += len(indices)
        return super().read(indices, with_captions=with_captions)


def score(source: RowSource, **settings: object) -> RobustnessResult:
    labels = read_labels(source, "label")
    return robustness(tiny_clip(), TOKENIZE, TRANSFORM, source, labels, TEMPLATES, **settings)  # type: ignore[arg-type]


def test_scores_equal_zero_shot_on_clean_and_on_corrupted_images() -> None:
    source = scenery(24)
    labels = read_labels(source, "label")
    result = score(source, corruptions=("gaussian noise", "greyscale"), severities=(1, 5), batch_size=7, seed=3)
    assert result.clean == zero_shot(tiny_clip(), TOKENIZE, TRANSFORM, source, labels, TEMPLATES).top1
    assert list(result.top1) == ["gaussian noise", "greyscale"]
    copies = ShiftedCopies(source, TRANSFORM, [("gaussian noise", 5)], seed=3)
    corrupted = MemorySource(
        [s._replace(image=copies.read([2 * i + 1])[0].image) for i, s in enumerate(source.samples)]
    )
    expected = zero_shot(tiny_clip(), TOKENIZE, TRANSFORM, corrupted, labels, TEMPLATES).top1
    assert result.top1["gaussian noise"][1] == expected
    assert result.num_samples == 24


def test_copies_are_the_corrupted_model_inputs() -> None:
    source = scenery(5)
    copies = pickle.loads(pickle.dumps(ShiftedCopies(source, TRANSFORM, [("shot noise", 4), ("jpeg", 2)], seed=1)))
    assert isinstance(copies, RowSource)
    assert len(copies) == 15
    clean = TRANSFORM(source.samples[3].image).permute(1, 2, 0).numpy()
    rows = copies.read([9, 10, 11])
    pixels = [TRANSFORM(row.image).permute(1, 2, 0).numpy() for row in rows]
    assert [row.row for row in rows] == [103] * 3
    assert np.array_equal(pixels[0], clean)
    assert np.array_equal(pixels[1], corrupt(clean, "shot noise", 4, seed=1, row=103))
    assert np.array_equal(pixels[2], corrupt(clean, "jpeg", 2, seed=1, row=103))
    assert copies.column("label")[9:12] == [source.samples[3].metadata["label"]] * 3


def test_each_image_is_read_once_for_all_copies() -> None:
    source = CountingSource(scenery(8).samples)
    score(source, corruptions=("contrast", "jpeg"), severities=(1, 2, 3), batch_size=20)
    assert source.num_read == 8


def test_batch_size_workers_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"corruptions": ("gaussian noise", "rotation"), "severities": (2, 4)}
    expected = score(scenery(20), **settings)
    assert score(scenery(20), **settings, batch_size=3) == expected
    assert score(scenery(20), **settings, num_workers=1) == expected
    monkeypatch.setattr(module, "_MAX_COPIES", 30)
    assert score(scenery(20), **settings) == expected


def test_undecodable_images_are_skipped_in_every_copy() -> None:
    source = scenery(12)
    source.samples[4] = source.samples[4]._replace(image=b"broken")
    result = score(source, corruptions=("pixelate",))
    assert (result.num_samples, result.num_undecodable) == (11, 1)


def test_other_lakes_are_compared_on_common_classes() -> None:
    source = scenery(24)
    labels = read_labels(source, "label")
    other = MemorySource([s for s in scenery(24).samples if s.metadata["label"] in labels.classes[:2]])
    other_labels = read_labels(other, "label", labels.classes)
    result = score(source, corruptions=("jpeg",), severities=(1,), shifted=[(other, other_labels)])
    (shift,) = result.shifts
    assert shift.num_samples == len(other)
    assert shift.top1 == pytest.approx(shift.clean)  # the same images, so the same score


def test_means_by_hand_and_json() -> None:
    result = RobustnessResult(
        0.8,
        {"jpeg": (0.6, 0.4), "contrast": (0.8, 0.2)},
        (1, 5),
        (Shift("sketches", 0.3, 0.7, 9),),
        10,
        2,
        0,
        0,
        TEMPLATES,
    )
    assert result.mean == pytest.approx(0.5)
    assert result.mean_relative_drop == pytest.approx(0.375)
    content = json.loads(json.dumps(result.to_json()))
    assert content["top1"] == {"jpeg": [0.6, 0.4], "contrast": [0.8, 0.2]}
    assert content["shifts"] == [{"lake": "sketches", "top1": 0.3, "clean_on_its_classes": 0.7, "num_samples": 9}]
