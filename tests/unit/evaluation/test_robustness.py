"""Robustness: what it says are the zero-shot scores of the copies, each read and decoded once."""

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
from tests.unit.evaluation.scenery import MemorySource, scenery, tiny_clip

TOKENIZE, TRANSFORM, TEMPLATES = Tokenizer(24), EvalTransform(32), find_templates("simple")


class Counting(MemorySource):
    """Counts how often rows are read."""

    num_read = 0

    def read(self, indices: Sequence[int]) -> list[Row]:
        self.num_read += len(indices)
        return super().read(indices)


def score(source: RowSource, **settings: object) -> RobustnessResult:
    labels = read_labels(source, "label")
    return robustness(tiny_clip(), TOKENIZE, TRANSFORM, source, labels, TEMPLATES, **settings)  # type: ignore[arg-type]


def test_the_clean_score_is_zero_shots_and_each_copys_is_that_of_its_images() -> None:
    source = scenery(24)
    labels = read_labels(source, "label")
    found = score(source, corruptions=("gaussian noise", "greyscale"), severities=(1, 5), batch_size=7, seed=3)
    assert found.clean == zero_shot(tiny_clip(), TOKENIZE, TRANSFORM, source, labels, TEMPLATES).top1
    assert list(found.top1) == ["gaussian noise", "greyscale"]
    copies = ShiftedCopies(source, TRANSFORM, [("gaussian noise", 5)], seed=3)
    worse = MemorySource([s._replace(image=copies.read([2 * i + 1])[0].image) for i, s in enumerate(source.samples)])
    wanted = zero_shot(tiny_clip(), TOKENIZE, TRANSFORM, worse, labels, TEMPLATES).top1
    assert found.top1["gaussian noise"][1] == wanted
    assert found.num_samples == 24


def test_the_copies_are_the_corrupted_squares() -> None:
    source = scenery(5)
    copies = pickle.loads(pickle.dumps(ShiftedCopies(source, TRANSFORM, [("shot noise", 4), ("jpeg", 2)], seed=1)))
    assert isinstance(copies, RowSource)
    assert len(copies) == 15
    square = TRANSFORM(source.samples[3].image).permute(1, 2, 0).numpy()
    rows = copies.read([9, 10, 11])
    seen = [TRANSFORM(row.image).permute(1, 2, 0).numpy() for row in rows]
    assert [row.row for row in rows] == [103] * 3
    assert np.array_equal(seen[0], square)
    assert np.array_equal(seen[1], corrupt(square, "shot noise", 4, seed=1, row=103))
    assert np.array_equal(seen[2], corrupt(square, "jpeg", 2, seed=1, row=103))
    assert copies.column("label")[9:12] == [source.samples[3].metadata["label"]] * 3


def test_each_image_is_read_once_for_all_copies() -> None:
    source = Counting(scenery(8).samples)
    score(source, corruptions=("contrast", "jpeg"), severities=(1, 2, 3), batch_size=20)
    assert source.num_read == 8


def test_batches_workers_and_parts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"corruptions": ("gaussian noise", "rotation"), "severities": (2, 4)}
    whole = score(scenery(20), **settings)
    assert score(scenery(20), **settings, batch_size=3) == whole
    assert score(scenery(20), **settings, num_workers=1) == whole
    monkeypatch.setattr(module, "_COPIES_AT_ONCE", 30)
    assert score(scenery(20), **settings) == whole


def test_broken_images_are_left_out_of_every_copy() -> None:
    source = scenery(12)
    source.samples[4] = source.samples[4]._replace(image=b"broken")
    found = score(source, corruptions=("pixelate",))
    assert (found.num_samples, found.num_undecodable) == (11, 1)


def test_other_lakes_are_compared_on_the_classes_that_both_have() -> None:
    source = scenery(24)
    labels = read_labels(source, "label")
    other = MemorySource([s for s in scenery(24).samples if s.metadata["label"] in labels.classes[:2]])
    known = read_labels(other, "label", labels.classes)
    found = score(source, corruptions=("jpeg",), severities=(1,), shifted=[(other, known)])
    (shift,) = found.shifts
    assert shift.num_samples == len(other)
    assert shift.top1 == pytest.approx(shift.clean)  # the same images, so the same score


def test_means_by_hand_and_json() -> None:
    found = RobustnessResult(
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
    assert found.mean == pytest.approx(0.5)
    assert found.mean_relative_drop == pytest.approx(0.375)
    content = json.loads(json.dumps(found.to_json()))
    assert content["top1"] == {"jpeg": [0.6, 0.4], "contrast": [0.8, 0.2]}
    assert content["shifts"] == [{"lake": "sketches", "top1": 0.3, "clean_on_its_classes": 0.7, "num_samples": 9}]
