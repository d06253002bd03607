"""Zero-shot classification: the classifier, counts by hand, skipped rows, and the JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import DataError
from lakeclip.evaluation.classifier import check_prompts, classifier_weights, classify
from lakeclip.evaluation.encode import encode_images, encode_texts
from lakeclip.evaluation.labels import read_labels
from lakeclip.evaluation.prompts import TemplateSet, find_templates
from lakeclip.evaluation.zeroshot import ClassScore, ZeroShotResult, confusion_counts, zero_shot
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.evaluation.fixtures import scenery, tiny_clip

TOKENIZE, TRANSFORM = Tokenizer(24), EvalTransform(32)


def make_result(confusion: list[list[int]], top5: float | None = None) -> ZeroShotResult:
    counts = np.array(confusion)
    names = tuple("abcdefgh"[: len(counts)])
    return ZeroShotResult(names, counts, float(np.trace(counts) / counts.sum()), top5, TemplateSet("t", "", ("{}",)))


def test_classifier_is_the_normalized_mean_of_normalized_prompts() -> None:
    model = tiny_clip()
    prompts = ["a photo of a {}.", "art of the {}, which is rather longer"]
    weights = classifier_weights(model, TOKENIZE, ["dog", "cat", "cow"], prompts)
    with torch.no_grad():
        texts = TOKENIZE([s.format("cat") for s in prompts])
        cat = F.normalize(F.normalize(model.encode_text(texts), dim=-1).mean(dim=0), dim=0)
    torch.testing.assert_close(weights[1], cat)
    torch.testing.assert_close(weights.norm(dim=-1), torch.ones(3))


def test_counts_by_hand() -> None:
    weights = torch.eye(7)
    images = torch.tensor(
        [
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.1, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
            [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
        ]
    )
    nearest = classify(images, weights, torch.zeros(())).nearest
    confusion, top5 = confusion_counts(nearest, torch.tensor([0, 0, 4, 5]), 7)
    assert confusion[0].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert confusion[4].tolist() == confusion[5].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert top5 == 3  # class 1 was second for the second image, 4 was fifth for the third; 5 is sixth for the last


def test_top5_is_one_with_fewer_than_five_classes() -> None:
    nearest = classify(torch.eye(2), torch.eye(2), torch.zeros(())).nearest
    _, top5 = confusion_counts(nearest, torch.tensor([1, 0]), 2)
    assert top5 == 2


def test_zero_shot_from_images_to_scores() -> None:
    model, source = tiny_clip(), scenery(32)
    labels, templates = read_labels(source, "label"), find_templates("scenes")
    result = zero_shot(model, TOKENIZE, TRANSFORM, source, labels, templates, batch_size=7)
    images = encode_images(model, source, TRANSFORM).features
    texts = encode_texts(model, TOKENIZE, [t.format(c) for c in labels.classes for t in templates.templates])
    weights = F.normalize(texts.view(8, 4, -1).mean(dim=1), dim=-1)
    is_correct = (images @ weights.T).argmax(dim=1) == torch.tensor(labels.targets)
    assert result.top1 == pytest.approx(is_correct.float().mean().item())
    assert result.num_samples == 32
    assert result.confusion.sum(axis=1).tolist() == [4] * 8
    assert result.chance == 1 / 8
    logits = model.logit_scale.detach().exp() * images @ weights.T
    calibration = result.calibration
    assert calibration is not None
    assert calibration.confidence == pytest.approx(logits.softmax(dim=1).amax(dim=1).mean().item(), rel=1e-5)
    assert calibration.accuracy == pytest.approx(result.top1)


def test_bias_of_a_sigmoid_model_does_not_change_its_predictions() -> None:
    torch.manual_seed(0)
    images, weights = (F.normalize(torch.randn(n, 8), dim=1) for n in (20, 6))
    scale, bias = torch.tensor(2.0), -10.0
    predictions = classify(images, weights, scale)
    with_bias = (scale.exp() * images @ weights.T + bias).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(predictions.confidence, with_bias)


def test_cleaned_class_names_are_listed() -> None:
    source = scenery(8)
    source.samples = [
        s._replace(metadata={"label": str(s.metadata["label"]).replace(" ", "_")}) for s in source.samples
    ]
    labels = read_labels(source, "label")
    result = zero_shot(tiny_clip(), TOKENIZE, TRANSFORM, source, labels, find_templates("simple"))
    assert result.cleaned["red_circle"] == "red circle"
    assert result.to_json()["cleaned_names"] == result.cleaned
    assert len(result.cleaned) == len(result.classes)


def test_skipped_rows_are_counted() -> None:
    source = scenery(10)
    source.samples[2] = source.samples[2]._replace(image=b"broken")
    source.samples[5] = source.samples[5]._replace(metadata={"label": ""})
    templates = find_templates("simple")
    result = zero_shot(tiny_clip(), TOKENIZE, TRANSFORM, source, read_labels(source, "label"), templates)
    assert (result.num_samples, result.num_undecodable, result.num_unlabelled) == (8, 1, 1)
    assert result.confusion.sum() == 8


def test_scores_per_class() -> None:
    result = make_result([[3, 1, 0], [2, 0, 2], [0, 0, 0]])
    assert result.top1 == pytest.approx(3 / 8)
    assert result.mean_per_class == pytest.approx((3 / 4 + 0) / 2)
    assert result.per_class == (ClassScore("a", 4, 3, 2), ClassScore("b", 4, 0, 1), ClassScore("c", 0, 0, 2))
    assert [score.accuracy for score in result.per_class] == [0.75, 0.0, None]
    assert [score.precision for score in result.per_class] == [0.6, 0.0, 0.0]
    assert make_result([[1, 0], [1, 0]]).per_class[1].precision is None


def test_most_common_mistakes_come_first() -> None:
    assert make_result([[3, 1, 0], [5, 0, 2], [0, 0, 0]]).confusions() == [("b", "a", 5), ("b", "c", 2), ("a", "b", 1)]
    assert make_result([[3, 0], [0, 3]]).confusions() == []


def test_interval_contains_the_score_and_narrows_with_more_images() -> None:
    few, many = make_result([[5, 5], [5, 5]]), make_result([[500, 500], [500, 500]])
    assert few.interval[0] < many.interval[0] < 0.5 < many.interval[1] < few.interval[1]
    assert few.interval == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert make_result([[10, 0], [0, 10]]).interval == pytest.approx((0.8389, 1.0), abs=1e-4)


def test_json_has_the_documented_keys_and_plain_values() -> None:
    content = json.loads(json.dumps(make_result([[3, 1], [0, 4]]).to_json()))
    assert content["top1"] == 0.875
    assert content["top5"] is None, "any model has 100% with two classes"
    assert content["num_samples"] == 8
    assert content["mean_per_class"] == 0.875
    assert content["classes"] == ["a", "b"]
    assert content["per_class"][0] == {"name": "a", "accuracy": 0.75, "precision": 1.0, "num_samples": 4}
    assert content["confusion"] == [[3, 1], [0, 4]]


@pytest.mark.parametrize(
    "classes", [("a very " * 45 + "cat", "a very " * 45 + "dog"), ("caf\u00e9", "cafe\u0301"), ("cat", "cat", "cat")]
)
def test_classes_with_equal_token_ids_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="all classes have the same prompt for the model") as error:
        check_prompts(Tokenizer(77), classes, ["a photo of a {}."])
    assert error.value.next_step
    (warning,) = check_prompts(Tokenizer(77), ["owl", *classes], ["a photo of a {}."])
    assert f"{len(classes) - 1} of {len(classes) + 1} classes have the prompt of another" in warning.what
    assert warning.advice


def test_many_different_classes_pass() -> None:
    assert check_prompts(Tokenizer(77), [f"class {index}" for index in range(1500)], ["a photo of a {}."]) == []
