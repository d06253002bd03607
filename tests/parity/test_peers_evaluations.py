"""Peers' tools score an exported model as lakeclip does, by the code that benchmarks/agreement.py runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.checkpoints.exports import export
from lakeclip.checkpoints.native import LoadedModel
from lakeclip.cli.report import Effort, retrieve
from lakeclip.data.transforms import EvalTransform
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import find_templates
from lakeclip.evaluation.zeroshot import zero_shot
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.checkpoints.test_exports import VIT, made
from tests.unit.evaluation.scenery import scenery

pytest.importorskip("clip_benchmark")

#: Their loader leaves the shard open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: Not a multiple of the peers' batch: their means must be over images, not over batches.
NUM = 130
#: An image may change places with its neighbour: theirs is resized by Pillow. (Here nothing is: the scenes fit.)
POINT = 0.001


@pytest.fixture
def model() -> LoadedModel:
    return LoadedModel(made(VIT), Tokenizer(77), EvalTransform(64))


def test_zero_shot_classification(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from peers import clip_benchmark_classifies, open_clip_classifies, write_labelled

    source, templates = scenery(NUM, "train"), find_templates("openai-7")
    labels = read_labels(source, "label")
    ours = zero_shot(*model, source, labels, templates)
    assert 0 < ours.top1 < ours.top5 < 1
    assert ours.mean_per_class != pytest.approx(ours.top1, abs=POINT)
    export(model.model, "open_clip", tmp_path / "out")
    photos = [(row.image, target) for row, target in zip(source.read(labels.positions), labels.targets, strict=True)]
    write_labelled(tmp_path / "shards", photos, labels.classes, templates.templates)
    theirs = clip_benchmark_classifies(tmp_path / "out", tmp_path / "shards")
    expected = {"top1": ours.top1, "top5": ours.top5, "mean_per_class": ours.mean_per_class}
    assert theirs == pytest.approx(expected, abs=POINT)
    theirs = open_clip_classifies(tmp_path / "out", photos, labels.classes, templates.templates)
    assert theirs == pytest.approx({"top1": ours.top1, "top5": ours.top5}, abs=POINT)


def test_retrieval(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from peers import clip_benchmark_retrieves, write_captioned

    source = scenery(NUM, "train")
    # A caption that two images have is level with itself: they count it by chance, we by its chance. Here none is.
    for number, sample in enumerate(source.samples):
        source.samples[number] = sample._replace(captions=tuple(f"{text} {number}" for text in sample.captions))
    _, ours = retrieve(model, source, Effort(device="cpu"))
    both = {"image_to_text": ours.image_to_text, "text_to_image": ours.text_to_image}
    expected = {f"{way} R@{k}": share for way, of in both.items() for k, share in of.recall.items()}
    assert 0 < expected["image_to_text R@10"] < 1
    export(model.model, "open_clip", tmp_path / "out")
    write_captioned(tmp_path / "shards", ((sample.image, sample.captions) for sample in source.samples))
    assert clip_benchmark_retrieves(tmp_path / "out", tmp_path / "shards") == pytest.approx(expected, abs=POINT)
