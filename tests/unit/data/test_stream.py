"""Test that batches are a pure function of positions."""

from __future__ import annotations

import logging
import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.data.order import Order, hold_out
from lakeclip.data.plan import SourcePlan
from lakeclip.data.stream import EvalSampler, PairLoader, PairStream, Span, TrainSampler
from lakeclip.data.transforms import EvalTransform, TrainTransform
from lakeclip.errors import DataError
from lakeclip.text.tokenizer import Tokenizer
from tests.unit.data.memory_source import MemorySource, row_of


def train_stream(source: MemorySource, *, seed: int = 0, fraction: float = 0.0, ratio: float = 0.75) -> PairStream:
    rows, _ = hold_out(len(source), fraction)
    return PairStream(source, SourcePlan(rows, Order(len(rows), seed)), TrainTransform(8, ratio), Tokenizer())


def eval_stream(source: MemorySource) -> PairStream:
    rows, _ = hold_out(len(source), 0)
    return PairStream(source, SourcePlan(rows, Order(len(rows), shuffle=False)), EvalTransform(8), Tokenizer())


def captions_of(batch) -> list[str]:
    return [Tokenizer().decode(ids) for ids in batch.texts]


def test_the_contents_of_a_batch():
    batch = train_stream(MemorySource(300))[Span(0, 10, 17)]
    assert batch.images.shape == (7, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.rows.shape == (7,)
    assert [row_of(image) for image in batch.images] == batch.rows.tolist()
    assert [int("".join(text.split()[:-1])) for text in captions_of(batch)] == batch.rows.tolist()
    longest = max(len(Tokenizer().encode(text)) for text in captions_of(batch)) + 2
    assert batch.texts.shape == (7, longest), "trimmed to the longest caption"


def test_any_batch_can_be_rebuilt():
    stream = train_stream(MemorySource(300, captions=5))
    first, second = stream[Span(3, 40, 60)], pickle.loads(pickle.dumps(stream))[Span(3, 40, 60)]
    assert first.images.equal(second.images)
    assert first.texts.equal(second.texts)
    parts = [stream[Span(3, 40, 45)], stream[Span(3, 45, 60)]]
    assert torch.cat([part.images for part in parts]).equal(first.images)
    assert captions_of(parts[0]) + captions_of(parts[1]) == captions_of(first)
    other = stream[Span(4, 40, 60)]
    assert not other.rows.equal(first.rows)


def test_each_epoch_draws_one_of_several_captions():
    stream = train_stream(MemorySource(200, captions=5))
    drawn = [captions_of(stream[Span(epoch, 0, 200)]) for epoch in range(5)]
    ordinals = [caption.split()[-1] for caption in chain(*drawn)]
    counts = [ordinals.count(ordinal) for ordinal in ("first", "second", "third", "fourth", "fifth")]
    assert sum(counts) == 1000
    assert min(counts) > 150
    captions_of_row_7 = {caption.split()[-1] for caption in chain(*drawn) if caption.startswith("7 ")}
    assert len(captions_of_row_7) > 1


def test_validation_uses_the_first_caption_of_every_row():
    batch = eval_stream(MemorySource(20, captions=3))[Span(0, 0, 20)]
    assert batch.rows.tolist() == list(range(20))
    assert all(caption.endswith("first") for caption in captions_of(batch))


def test_unusable_rows_are_replaced_and_reported_once(caplog):
    """Guard against ragged batches: train-CLIP dropped bad rows within a batch, and all_gather hung."""
    stream = train_stream(MemorySource(50, broken=[3, 4, 20], silent=[7]))
    with caplog.at_level(logging.WARNING):
        batches = [stream[Span(epoch, 0, 50)] for epoch in range(3)]
    for batch in batches:
        assert batch.rows.shape == (50,)
        assert not {3, 4, 20, 7} & set(batch.rows.tolist())
        assert [row_of(image) for image in batch.images] == batch.rows.tolist()
        assert len(set(batch.rows.tolist())) > 42
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    assert sum("row 20 of memory" in message and "cannot be decoded" in message for message in messages) == 1
    assert sum("row 7 of memory" in message and "no caption" in message for message in messages) == 1
    assert stream[Span(1, 0, 50)].rows.equal(batches[1].rows)


def test_replacements_come_from_the_training_rows():
    stream = train_stream(MemorySource(200, broken=range(0, 200, 2)), fraction=0.3)
    _, held_out = hold_out(200, 0.3)
    used = set(stream[Span(0, 0, len(stream))].rows.tolist())
    assert not used & set(held_out[np.arange(len(held_out))].tolist())


def test_a_source_without_usable_rows_raises():
    """Guard against recursion: train-CLIP recursed at two consecutive bad files."""
    with pytest.raises(DataError, match="hardly any usable rows"):
        train_stream(MemorySource(10, broken=range(10)))[Span(0, 0, 2)]


def test_the_output_of_a_custom_tokenizer_is_unchanged():
    source = MemorySource(10)
    rows, _ = hold_out(10, 0)
    stream = PairStream(
        source, SourcePlan(rows, Order(10)), TrainTransform(8), lambda texts: torch.zeros(len(texts), 50)
    )
    assert stream[Span(0, 0, 4)].texts.shape == (4, 50)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 10), st.integers(1, 4), st.integers(0, 60))
def test_global_batches_are_the_same_for_any_number_of_ranks(num_rows, batch_size, world_size, first):
    """Guard against missing sharding: in train-CLIP every rank read the same batches."""
    stream = train_stream(MemorySource(num_rows))
    global_batch = batch_size * world_size
    ranks = [
        list(TrainSampler(stream, batch_size, rank=rank, world_size=world_size, start_position=lambda: (2, first)))
        for rank in range(world_size)
    ]
    batches = [[position for span in spans for position in range(span.start, span.stop)] for spans in zip(*ranks)]  # noqa: B905
    expected = range(first, num_rows - global_batch + 1, global_batch)
    assert batches == [list(range(start, start + global_batch)) for start in expected]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(span.epoch == 2 and span.stop - span.start == batch_size for rank in ranks for span in rank)
    sampler = TrainSampler(stream, batch_size, rank=0, world_size=world_size, start_position=lambda: (0, 0))
    assert len(sampler) == num_rows // global_batch == len(list(sampler))


@given(st.integers(1, 100), st.integers(1, 10), st.integers(1, 4))
def test_validation_visits_every_row_once(num_rows, batch_size, world_size):
    stream = eval_stream(MemorySource(num_rows))
    ranks = [
        list(EvalSampler(stream, num_rows, batch_size, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    positions = sorted(position for spans in ranks for span in spans for position in range(span.start, span.stop))
    assert positions == list(range(num_rows))
    assert len({len(spans) for spans in ranks}) == 1
    sizes = [span.stop - span.start for spans in ranks for span in spans]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_a_loader_without_workers_runs_in_this_process():
    stream = train_stream(MemorySource(20))
    sampler = TrainSampler(stream, 4, rank=0, world_size=1, start_position=lambda: (0, 8))
    loader = PairLoader(stream, sampler, num_workers=0)
    assert len(loader) == 5
    assert [batch.rows.tolist() for batch in loader] == [
        stream[Span(0, start, start + 4)].rows.tolist() for start in (8, 12, 16)
    ]


def test_a_loader_raises_lakeclip_errors():
    stream = train_stream(MemorySource(10, broken=range(10)))
    loader = PairLoader(
        stream, TrainSampler(stream, 2, rank=0, world_size=1, start_position=lambda: (0, 0)), num_workers=0
    )
    with pytest.raises(DataError, match="hardly any usable rows"):
        next(iter(loader))
