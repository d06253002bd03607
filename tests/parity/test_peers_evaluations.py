"""Tests that other tools score an exported model as lakeclip does, with the code of benchmarks/agreement.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.checkpoints.exports import export
from lakeclip.checkpoints.native import LoadedModel
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.run import EncodeConfig, score_retrieval
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.checkpoints.test_exports import VIT, random_clip
from tests.unit.evaluation.fixtures import scenery

pytest.importorskip("clip_benchmark")

#: Their loader does not close the shard.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: Not a multiple of their batch size, so that a mean over batches would differ from one over images.
NUM = 130
#: Tolerance. They resize with Pillow, which could change the order of two images. (The scenes need no resizing.)
TOLERANCE = 0.001


@pytest.fixture
def model() -> LoadedModel:
    return LoadedModel(random_clip(VIT), Tokenizer(77), EvalTransform(64))


def test_zero_shot_classification(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from common.peer_evaluations import clip_benchmark_classification, open_clip_classification, write_labelled

    source, templates = scenery(NUM, "train"), find_templates("openai-7")
    labels = read_labels(source, "label")
    ours = zero_shot(*model, source, labels, templates)
    assert 0 < ours.top1 < ours.top5 < 1
    assert ours.mean_per_class != pytest.approx(ours.top1, abs=TOLERANCE)
    export(model.model, "open_clip", tmp_path / "out")
    photos = [(row.image, target) for row, target in zip(source.read(labels.positions), labels.targets, strict=True)]
    write_labelled(tmp_path / "shards", photos, labels.classes, templates.templates)
    theirs = clip_benchmark_classification(tmp_path / "out", tmp_path / "shards")
    expected = {"top1": ours.top1, "top5": ours.top5, "mean_per_class": ours.mean_per_class}
    assert theirs == pytest.approx(expected, abs=TOLERANCE)
    theirs = open_clip_classification(tmp_path / "out", photos, labels.classes, templates.templates)
    assert theirs == pytest.approx({"top1": ours.top1, "top5": ours.top5}, abs=TOLERANCE)


def test_retrieval(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from common.peer_evaluations import clip_benchmark_retrieval, write_captioned

    source = scenery(NUM, "train")
    # Make captions unique: they break ties at random, and lakeclip takes the expectation.
    for number, sample in enumerate(source.samples):
        source.samples[number] = sample._replace(captions=tuple(f"{text} {number}" for text in sample.captions))
    _, ours = score_retrieval(model, source, EncodeConfig(device="cpu"))
    directions = {"image_to_text": ours.image_to_text, "text_to_image": ours.text_to_image}
    expected = {f"{way} R@{k}": share for way, scores in directions.items() for k, share in scores.recall.items()}
    assert 0 < expected["image_to_text R@10"] < 1
    export(model.model, "open_clip", tmp_path / "out")
    write_captioned(tmp_path / "shards", ((sample.image, sample.captions) for sample in source.samples))
    assert clip_benchmark_retrieval(tmp_path / "out", tmp_path / "shards") == pytest.approx(expected, abs=TOLERANCE)
