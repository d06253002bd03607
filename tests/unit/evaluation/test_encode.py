"""Encoding of images and texts: order, batches, workers, and errors."""

from __future__ import annotations

import os
import pickle
import signal

import pytest
import torch
from torch.nn import functional as F

from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ImageError, LakeError, ModelError, ProcessError
from lakeclip.evaluation.encode import _Batches, _decoded, encode_images, encode_texts
from lakeclip.lake.rows import Row
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.evaluation.fixtures import MemorySource, scenery, tiny_clip

TRANSFORM = EvalTransform(32)
TOKENIZE = Tokenizer(24)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_images_are_encoded_in_order_for_any_batch_size(batch_size: int) -> None:
    model, source = tiny_clip(), scenery()
    encoded = encode_images(model, source, TRANSFORM, batch_size=batch_size)
    with torch.no_grad():
        images = torch.stack([TRANSFORM(sample.image) for sample in source.samples])
        expected = F.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(encoded.features, expected)
    assert encoded.features.dtype == torch.float32
    assert encoded.positions == list(range(12))
    assert encoded.captions == [sample.captions for sample in source.samples]
    assert encoded.undecodable == []


def test_requested_positions_only() -> None:
    model, source = tiny_clip(), scenery()
    everything = encode_images(model, source, TRANSFORM)
    some = encode_images(model, source, TRANSFORM, positions=[7, 2, 9], batch_size=2)
    assert some.positions == [7, 2, 9]
    torch.testing.assert_close(some.features, everything.features[[7, 2, 9]])


def test_worker_processes_give_the_same_features() -> None:
    model, source = tiny_clip(), scenery(6)
    in_process = encode_images(model, source, TRANSFORM, batch_size=2)
    in_worker = encode_images(model, source, TRANSFORM, batch_size=2, num_workers=1)
    assert in_worker.positions == in_process.positions
    torch.testing.assert_close(in_worker.features, in_process.features)


def test_undecodable_images_are_skipped_and_listed() -> None:
    source = scenery()
    for broken in (3, 4, 11):
        source.samples[broken] = source.samples[broken]._replace(image=b"no image")
    encoded = encode_images(tiny_clip(), source, TRANSFORM, batch_size=2)
    assert encoded.positions == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert len(encoded.features) == len(encoded.captions) == 9
    assert [item.row for item in encoded.undecodable] == [103, 104, 111]
    assert all(item.reason for item in encoded.undecodable)


def test_only_undecodable_images_are_an_error() -> None:
    source = scenery(3)
    source.samples = [sample._replace(image=b"") for sample in source.samples]
    with pytest.raises(ImageError, match="none of the 3 images") as error:
        encode_images(tiny_clip(), source, TRANSFORM)
    assert "row 100" in error.value.found


class KillingSource(MemorySource):
    def read(self, indices: object, *, with_captions: bool = True) -> list[Row]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_killed_worker_is_reported() -> None:
    with pytest.raises(ProcessError, match=r"was killed \(SIGKILL\)") as error:
        encode_images(tiny_clip(), KillingSource(scenery(2).samples), TRANSFORM, num_workers=1)
    assert error.value.found.startswith("process ")
    assert "--num-workers" in error.value.next_step


class DamagedSource(MemorySource):
    def read(self, indices: object, *, with_captions: bool = True) -> list[Row]:
        raise LakeError("row 5 is damaged", found="a wrong checksum")


def test_lake_errors_are_raised_unchanged() -> None:
    source = DamagedSource(scenery(2).samples)
    with pytest.raises(LakeError, match="row 5 is damaged") as error:
        encode_images(tiny_clip(), source, TRANSFORM)
    assert error.value.found == "a wrong checksum"
    # The value that a worker process sends.
    sent = pickle.loads(pickle.dumps(_Batches(source, TRANSFORM, [[0]], with_captions=True)[0]))
    assert isinstance(sent, LakeError)


@pytest.mark.parametrize("ahead", [0, 1, 20])
def test_batches_decoded_ahead_are_in_order(ahead: int) -> None:
    groups = [[7, 2], [0], [11, 3, 4], [5]]
    batches = list(_decoded(_Batches(scenery(), TRANSFORM, groups, with_captions=True), 0, ahead=ahead))
    assert [batch.positions for batch in batches] == groups
    assert [len(batch.images) for batch in batches] == [2, 1, 3, 1]
    assert list(_decoded(_Batches(scenery(), TRANSFORM, [], with_captions=True), 0, ahead=ahead)) == []
    with pytest.raises(LakeError, match="row 5 is damaged"):
        list(
            _decoded(_Batches(DamagedSource(scenery(2).samples), TRANSFORM, [[0]], with_captions=True), 0, ahead=ahead)
        )


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_texts_are_encoded_in_order_for_any_length(batch_size: int) -> None:
    model = tiny_clip()
    texts = ["a much longer caption of a red circle above", "dog", "", "a small cat", "dog", "word " * 50]
    encoded = encode_texts(model, TOKENIZE, texts, batch_size=batch_size)
    with torch.no_grad():
        expected = F.normalize(model.encode_text(TOKENIZE(texts)), dim=-1)
    torch.testing.assert_close(encoded, expected)


def test_training_mode_is_restored() -> None:
    model = tiny_clip().train()
    encode_images(model, scenery(2), TRANSFORM)
    encode_texts(model, TOKENIZE, ["a"])
    assert model.training


def test_features_can_be_used_in_autograd() -> None:
    features = encode_texts(tiny_clip(), TOKENIZE, ["a", "b"])
    weight = torch.ones(16, requires_grad=True)
    (features @ weight).sum().backward()
    assert weight.grad is not None


def test_non_finite_features_are_an_error() -> None:
    model = tiny_clip()
    with torch.no_grad():
        model.text_projection.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        encode_texts(model, TOKENIZE, ["a"])


def test_no_progress_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    encode_images(tiny_clip(), scenery(2), TRANSFORM)
    assert capsys.readouterr() == ("", "")


def test_frozen_tower_stays_in_evaluation_mode() -> None:
    """Keep batch norm statistics of a frozen tower fixed while a run evaluates itself."""
    model = tiny_clip().train()
    model.visual.eval()
    encode_texts(model, TOKENIZE, ["a photo"])
    assert not any(module.training for module in model.visual.modules())
    assert model.training
    assert model.transformer.training
