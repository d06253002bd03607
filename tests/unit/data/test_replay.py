"""Test that a replay rebuilds the batches of a run's samplers and names replaced rows."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.position import DataPosition
from lakeclip.data.replay import Replay
from lakeclip.data.stream import TrainSampler
from lakeclip.data.transforms import TrainTransform
from lakeclip.report.batch_page import BatchSummary, shown_samples, write_batch_page
from tests.unit.data.memory_source import MemorySource


def make_replay(source: MemorySource, *, batch: int = 4, world: int = 1, per_step: int = 1) -> Replay:
    data = PairDataModule(source, image_size=8, batch_size=batch)
    return Replay(data.train_stream, data.image_sizes, DataPosition(), batch, world, per_step, -1, 2)


def rows(replay: Replay, step: int) -> list[int]:
    spans = [span for _, _, span in replay.spans(step)]
    return list(
        chain(*(replay.stream.plan.rows(span.epoch, np.arange(span.start, span.stop)).tolist() for span in spans))
    )


@given(
    num=st.integers(24, 60),
    batch=st.integers(1, 4),
    world=st.integers(1, 3),
    per_step=st.integers(1, 2),
    epoch=st.integers(0, 2),
)
@pytest.mark.slow
def test_an_epoch_visits_each_row_at_most_once(num: int, batch: int, world: int, per_step: int, epoch: int) -> None:
    """Check that steps are full and depend only on the global batch, not on how it is divided."""
    replay = make_replay(MemorySource(num), batch=batch, world=world, per_step=per_step)
    steps = range(epoch * replay.steps_per_epoch + 1, (epoch + 1) * replay.steps_per_epoch + 1)
    seen = [sorted(rows(replay, step)) for step in steps]
    assert {len(step) for step in seen} == {batch * world * per_step}
    visited = list(chain(*seen))
    assert len(set(visited)) == len(visited)
    undivided = make_replay(MemorySource(num), batch=batch * world * per_step)
    assert [sorted(rows(undivided, step)) for step in steps] == seen


def test_replaced_rows_are_named(tmp_path: Path) -> None:
    replay = make_replay(MemorySource(12, broken=[3, 7], captions=3), batch=12)
    samples = shown_samples(replay, 1)
    assert len(samples) == 12
    replaced = {row: reason for sample in samples for row, reason in sample.replaced}
    assert set(replaced) == {3, 7}
    assert "cannot be decoded" in replaced[3]
    assert not {sample.row for sample in samples} & {3, 7}
    ((_, _, span),) = replay.spans(1)
    batch = replay.stream[span]
    assert [sample.row for sample in samples] == batch.rows.tolist()
    for sample, image in zip(samples, batch.images, strict=True):
        assert torch.equal(torch.from_numpy(sample.pixels).permute(2, 0, 1), image)
    batch = BatchSummary("<b>x</b>", 1, 0, 0, 12, "memory", "1")
    write_batch_page(tmp_path / "page.html", batch, samples)
    page = (tmp_path / "page.html").read_text()
    assert "<b>x" not in page
    assert page.count("replaces row") == len([reason for sample in samples for reason in sample.replaced])
    assert len(shown_samples(replay, 1, 2)) == 2


@pytest.mark.parametrize("step", [1, 5])
def test_the_crop_lies_within_the_image(step: int) -> None:
    replay = make_replay(MemorySource(24))
    assert isinstance(replay.stream.transform, TrainTransform)
    for sample in shown_samples(replay, step):
        side, where = sample.crop.split(" at ")
        left, top = map(int, where.split(", "))
        assert max(left, top) + int(side.split(" × ")[0]) <= 8


@given(
    num=st.integers(16, 90),
    start=st.integers(0, 40),
    batch=st.integers(1, 6),
    world=st.integers(1, 2),
    per_step=st.integers(1, 3),
)
def test_an_epoch_resumed_with_other_batches_ends_with_its_sampler(
    num: int, start: int, batch: int, world: int, per_step: int
) -> None:
    """Guard against counting leftover batches of the last step as a step."""
    samples_per_step = batch * world * per_step
    assume(samples_per_step <= num)
    data = PairDataModule(MemorySource(num), image_size=8, batch_size=batch)
    replay = Replay(data.train_stream, data.image_sizes, DataPosition(4, 2, start, 99), batch, world, per_step, -1, 2)
    sampler = TrainSampler(
        data.train_stream, batch, rank=0, world_size=world, start_position=lambda: (2, start), batches_per_step=per_step
    )
    steps = len(list(sampler)) // per_step
    positions = [replay.position_before(5 + step) for step in range(steps + 1)]
    assert [position.epoch for position in positions] == [2] * steps + [3]
    assert [position.position for position in positions[:-1]] == [
        start + samples_per_step * step for step in range(steps)
    ]
    assert positions[-1] == DataPosition(4 + steps, 3, 0, 99 + steps * samples_per_step)
