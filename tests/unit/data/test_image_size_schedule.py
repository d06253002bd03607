"""Test the schedule of image sizes: parsing, stages, and the batches that follow it."""

from __future__ import annotations

import pytest

from lakeclip.data.image_size_schedule import parse_image_size_schedule
from lakeclip.data.stream import PairStream, Span, TrainSampler
from lakeclip.errors import ConfigError
from tests.unit.data.memory_source import MemorySource
from tests.unit.data.test_stream import train_stream


def test_stages_follow_one_another() -> None:
    schedule = parse_image_size_schedule("112:0.4 160:0.4", 224)
    assert [schedule.size_at(progress) for progress in (0, 0.39, 0.4, 0.79, 0.8, 1)] == [112, 112, 160, 160, None, None]
    assert parse_image_size_schedule(None, 224).size_at(0) is None


@pytest.mark.parametrize("text", ["", "112", "112:x", "224:0.5", "0:0.5", "112:0", "112:0.6 160:0.6", "112:-1"])
def test_an_invalid_schedule_is_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="smaller images") as caught:
        parse_image_size_schedule(text, 224)
    assert "below 224" in caught.value.allowed


def test_a_batch_has_the_image_size_of_its_span() -> None:
    stream = train_stream(MemorySource(300))
    small, full = stream[Span(0, 0, 4, 8)], stream[Span(0, 0, 4)]
    assert small.images.shape == (4, 3, 8, 8)
    assert full.images.shape[-1] == stream.transform.image_size
    assert small.rows.equal(full.rows)


def test_all_ranks_change_size_at_the_same_global_batch() -> None:
    stream: PairStream = train_stream(MemorySource(300))
    sizes = []
    for rank in range(2):
        sampler = TrainSampler(
            stream,
            5,
            rank=rank,
            world_size=2,
            start_position=lambda: (0, 0),
            image_size_at=lambda epoch, position: 8 if position < 25 else None,
        )
        sizes.append([span.image_size for span in sampler])
    assert sizes[0] == sizes[1]
    assert sizes[0][:4] == [8, 8, 8, None]
