"""Smaller images first: what may be said, and when which size holds."""

from __future__ import annotations

import pytest

from lakeclip.data.sizes import parse_sizes
from lakeclip.data.stream import PairStream, Span, TrainSpans
from lakeclip.errors import ConfigError
from tests.unit.data.sources import MemorySource
from tests.unit.data.test_stream import train_stream


def test_stages_hold_one_after_another() -> None:
    schedule = parse_sizes("112:0.4 160:0.4", 224)
    assert [schedule.side(done) for done in (0, 0.39, 0.4, 0.79, 0.8, 1)] == [112, 112, 160, 160, None, None]
    assert parse_sizes(None, 224).side(0) is None


@pytest.mark.parametrize("text", ["", "112", "112:x", "224:0.5", "0:0.5", "112:0", "112:0.6 160:0.6", "112:-1"])
def test_what_cannot_be_is_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="smaller images") as caught:
        parse_sizes(text, 224)
    assert "below 224" in caught.value.allowed


def test_a_batch_has_the_side_that_its_span_says() -> None:
    stream = train_stream(MemorySource(300))
    small, whole = stream[Span(0, 0, 4, 8)], stream[Span(0, 0, 4)]
    assert small.images.shape == (4, 3, 8, 8)
    assert whole.images.shape[-1] == stream.transform.image_size
    assert small.rows.equal(whole.rows)


def test_all_ranks_change_sides_at_the_same_global_batch() -> None:
    stream: PairStream = train_stream(MemorySource(300))
    sides = []
    for rank in range(2):
        spans = TrainSpans(
            stream,
            5,
            rank=rank,
            world_size=2,
            place=lambda: (0, 0),
            side=lambda epoch, position: 8 if position < 25 else None,
        )
        sides.append([span.side for span in spans])
    assert sides[0] == sides[1]
    assert sides[0][:4] == [8, 8, 8, None]
