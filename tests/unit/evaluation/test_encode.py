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
from tests.unit.evaluation.scenery import MemorySource, scenery, tiny_clip

TRANSFORM = EvalTransform(32)
TOKENIZE = Tokenizer(24)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_images_are_encoded_in_order_whatever_the_batch(batch_size: int) -> None:
    model, source = tiny_clip(), scenery()
    found = encode_images(model, source, TRANSFORM, batch_size=batch_size)
    with torch.no_grad():
        images = torch.stack([TRANSFORM(sample.image) for sample in source.samples])
        wanted = F.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(found.features, wanted)
    assert found.features.dtype == torch.float32
    assert found.positions == list(range(12))
    assert found.captions == [sample.captions for sample in source.samples]
    assert found.undecodable == []


def test_only_the_positions_that_are_asked_for() -> None:
    model, source = tiny_clip(), scenery()
    everything = encode_images(model, source, TRANSFORM)
    some = encode_images(model, source, TRANSFORM, positions=[7, 2, 9], batch_size=2)
    assert some.positions == [7, 2, 9]
    torch.testing.assert_close(some.features, everything.features[[7, 2, 9]])


def test_worker_processes_give_the_same() -> None:
    model, source = tiny_clip(), scenery(6)
    alone = encode_images(model, source, TRANSFORM, batch_size=2)
    helped = encode_images(model, source, TRANSFORM, batch_size=2, num_workers=1)
    assert helped.positions == alone.positions
    torch.testing.assert_close(helped.features, alone.features)


def test_images_that_cannot_be_decoded_are_left_out_and_named() -> None:
    source = scenery()
    for broken in (3, 4, 11):
        source.samples[broken] = source.samples[broken]._replace(image=b"no image")
    found = encode_images(tiny_clip(), source, TRANSFORM, batch_size=2)
    assert found.positions == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert len(found.features) == len(found.captions) == 9
    assert [item.row for item in found.undecodable] == [103, 104, 111]
    assert all(item.reason for item in found.undecodable)


def test_no_image_that_can_be_decoded_is_an_error() -> None:
    source = scenery(3)
    source.samples = [sample._replace(image=b"") for sample in source.samples]
    with pytest.raises(ImageError, match="none of the 3 images") as error:
        encode_images(tiny_clip(), source, TRANSFORM)
    assert "row 100" in error.value.found


class KillingSource(MemorySource):
    def read(self, indices: object) -> list[Row]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_is_killed_is_named() -> None:
    with pytest.raises(ProcessError, match=r"was killed \(SIGKILL\)") as error:
        encode_images(tiny_clip(), KillingSource(scenery(2).samples), TRANSFORM, num_workers=1)
    assert error.value.found.startswith("process ")
    assert "--num-workers" in error.value.next_step


class DamagedSource(MemorySource):
    def read(self, indices: object) -> list[Row]:
        raise LakeError("row 5 is damaged", found="a wrong checksum")


def test_an_error_of_the_lake_arrives_as_it_is() -> None:
    source = DamagedSource(scenery(2).samples)
    with pytest.raises(LakeError, match="row 5 is damaged") as error:
        encode_images(tiny_clip(), source, TRANSFORM)
    assert error.value.found == "a wrong checksum"
    # What a worker process sends.
    sent = pickle.loads(pickle.dumps(_Batches(source, TRANSFORM, [[0]], with_captions=True)[0]))
    assert isinstance(sent, LakeError)


@pytest.mark.parametrize("ahead", [0, 1, 20])
def test_batches_made_ahead_come_in_order(ahead: int) -> None:
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
def test_texts_come_back_in_order_whatever_their_length(batch_size: int) -> None:
    model = tiny_clip()
    texts = ["a much longer caption of a red circle above", "dog", "", "a small cat", "dog", "word " * 50]
    found = encode_texts(model, TOKENIZE, texts, batch_size=batch_size)
    with torch.no_grad():
        wanted = F.normalize(model.encode_text(TOKENIZE(texts)), dim=-1)
    torch.testing.assert_close(found, wanted)


def test_the_model_goes_back_to_the_mode_it_was_in() -> None:
    model = tiny_clip().train()
    encode_images(model, scenery(2), TRANSFORM)
    encode_texts(model, TOKENIZE, ["a"])
    assert model.training


def test_features_can_be_computed_with_afterwards() -> None:
    features = encode_texts(tiny_clip(), TOKENIZE, ["a", "b"])
    weight = torch.ones(16, requires_grad=True)
    (features @ weight).sum().backward()
    assert weight.grad is not None


def test_a_model_that_has_diverged_is_said_to_have() -> None:
    model = tiny_clip()
    with torch.no_grad():
        model.text_projection.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        encode_texts(model, TOKENIZE, ["a"])


def test_nothing_is_printed_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    encode_images(tiny_clip(), scenery(2), TRANSFORM)
    assert capsys.readouterr() == ("", "")


def test_a_part_that_is_locked_stays_in_evaluation_mode() -> None:
    """A run with a locked tower scores itself while it trains: batch norm there must not begin to move."""
    model = tiny_clip().train()
    model.visual.eval()
    encode_texts(model, TOKENIZE, ["a photo"])
    assert not any(part.training for part in model.visual.modules())
    assert model.training
    assert model.transformer.training
