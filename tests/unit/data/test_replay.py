"""Batches made again: the same pairs as a sampler of the run gives, and what stood in for what."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.progress import Mark
from lakeclip.data.replay import Replay
from lakeclip.data.stream import TrainSpans
from lakeclip.data.transforms import TrainTransform
from lakeclip.evaluation.pages.batch_page import BatchAccount, shown_samples, write_batch_page
from tests.unit.data.sources import MemorySource


def replay(source: MemorySource, *, batch: int = 4, world: int = 1, per_step: int = 1) -> Replay:
    data = PairDataModule(source, image_size=8, batch_size=batch)
    return Replay(data.train_stream, data.sizes, Mark(), batch, world, per_step, -1, 2)


def rows(one: Replay, step: int) -> list[int]:
    spans = [span for _, _, span in one.spans(step)]
    return list(chain(*(one.stream.plan.rows(span.epoch, np.arange(span.start, span.stop)).tolist() for span in spans)))


@given(
    num=st.integers(24, 60),
    batch=st.integers(1, 4),
    world=st.integers(1, 3),
    per_step=st.integers(1, 2),
    epoch=st.integers(0, 2),
)
def test_an_epoch_is_every_row_once_at_most(num: int, batch: int, world: int, per_step: int, epoch: int) -> None:
    """Every step is whole; together they are the beginning of the order, whatever cuts it up."""
    one = replay(MemorySource(num), batch=batch, world=world, per_step=per_step)
    steps = range(epoch * one.steps_per_epoch + 1, (epoch + 1) * one.steps_per_epoch + 1)
    seen = [sorted(rows(one, step)) for step in steps]
    assert {len(step) for step in seen} == {batch * world * per_step}
    whole = list(chain(*seen))
    assert len(set(whole)) == len(whole)
    alone = replay(MemorySource(num), batch=batch * world * per_step)
    assert [sorted(rows(alone, step)) for step in steps] == seen


def test_what_stands_in_is_named(tmp_path: Path) -> None:
    one = replay(MemorySource(12, broken=[3, 7], captions=3), batch=12)
    samples = shown_samples(one, 1)
    assert len(samples) == 12
    replaced = {row: why for sample in samples for row, why in sample.replaced}
    assert set(replaced) == {3, 7}
    assert "cannot be decoded" in replaced[3]
    assert not {sample.row for sample in samples} & {3, 7}
    ((_, _, span),) = one.spans(1)
    batch = one.stream[span]
    assert [sample.row for sample in samples] == batch.rows.tolist()
    for sample, image in zip(samples, batch.images, strict=True):
        assert torch.equal(torch.from_numpy(sample.pixels).permute(2, 0, 1), image)
    account = BatchAccount("<b>x</b>", 1, 0, 0, 12, "memory", "1")
    write_batch_page(tmp_path / "page.html", account, samples)
    page = (tmp_path / "page.html").read_text()
    assert "<b>x" not in page
    assert page.count("instead of row") == len([why for sample in samples for why in sample.replaced])
    assert len(shown_samples(one, 1, 2)) == 2


@pytest.mark.parametrize("step", [1, 5])
def test_the_crop_lies_within_the_image(step: int) -> None:
    one = replay(MemorySource(24))
    assert isinstance(one.stream.transform, TrainTransform)
    for sample in shown_samples(one, step):
        side, where = sample.crop.split(" at ")
        left, top = map(int, where.split(", "))
        assert max(left, top) + int(side.split(" × ")[0]) <= 8


@given(
    num=st.integers(16, 90),
    begun=st.integers(0, 40),
    batch=st.integers(1, 6),
    world=st.integers(1, 2),
    per_step=st.integers(1, 3),
)
def test_an_epoch_gone_on_with_in_other_batches_ends_where_its_sampler_does(
    num: int, begun: int, batch: int, world: int, per_step: int
) -> None:
    """Steps were counted by batches, and those of the last one did not always make a step."""
    a_step = batch * world * per_step
    assume(a_step <= num)
    data = PairDataModule(MemorySource(num), image_size=8, batch_size=batch)
    one = Replay(data.train_stream, data.sizes, Mark(4, 2, begun, 99), batch, world, per_step, -1, 2)
    spans = TrainSpans(
        data.train_stream, batch, rank=0, world_size=world, place=lambda: (2, begun), batches_per_step=per_step
    )
    steps = len(list(spans)) // per_step
    places = [one.place(5 + step) for step in range(steps + 1)]
    assert [place.epoch for place in places] == [2] * steps + [3]
    assert [place.position for place in places[:-1]] == [begun + a_step * step for step in range(steps)]
    assert places[-1] == Mark(4 + steps, 3, 0, 99 + steps * a_step)
