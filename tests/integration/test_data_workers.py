"""Batches from real worker processes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lakeclip.data.order import Order, hold_out
from lakeclip.data.plan import Pass
from lakeclip.data.stream import PairLoader, PairStream, TrainSpans
from lakeclip.data.transforms import TrainTransform
from lakeclip.errors import DataError
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import ingest
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Batch
from tests.unit.data.sources import MemorySource, encode, photo

GLOBAL_BATCH = 24


def make_stream(source, tokenize=None) -> PairStream:
    rows, _ = hold_out(len(source), 0)
    return PairStream(source, Pass(rows, Order(len(rows), 5)), TrainTransform(8), tokenize or Tokenizer())


def loader(stream: PairStream, *, rank: int = 0, world_size: int = 1, num_workers: int, first: int = 0) -> PairLoader:
    epochs = iter(range(100))
    spans = TrainSpans(
        stream,
        GLOBAL_BATCH // world_size,
        rank=rank,
        world_size=world_size,
        place=lambda: (next(epochs), first),
    )
    return PairLoader(stream, spans, num_workers)


def global_batches(
    source, *, world_size: int, num_workers: int, first: int = 0
) -> list[tuple[torch.Tensor, list[int]]]:
    """Images and rows of two epochs, the ranks' slices put together."""
    ranks = [
        loader(make_stream(source), rank=rank, world_size=world_size, num_workers=num_workers, first=first)
        for rank in range(world_size)
    ]
    batches: list[tuple[torch.Tensor, list[int]]] = []
    for _ in range(2):
        for parts in zip(*ranks, strict=True):
            batches.append(
                (torch.cat([part.images for part in parts]), torch.cat([part.rows for part in parts]).tolist())
            )
    return batches


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("num_workers", range(5))
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_same_global_batches_for_any_ranks_and_workers(world_size, num_workers):
    """Defect 19: no sharding."""
    source = MemorySource(135, broken=[5, 40], captions=3)
    expected = global_batches(source, world_size=1, num_workers=0)
    found = global_batches(source, world_size=world_size, num_workers=num_workers)
    assert len(found) == len(expected) == 2 * (135 // GLOBAL_BATCH)
    for (images, rows), (expected_images, expected_rows) in zip(found, expected, strict=True):
        assert rows == expected_rows
        assert images.equal(expected_images)


def test_the_stream_can_begin_anywhere():
    source = MemorySource(135)
    whole = global_batches(source, world_size=1, num_workers=0)[:5]
    rest = global_batches(source, world_size=2, num_workers=2, first=48)[:3]
    assert [rows for _, rows in rest] == [rows for _, rows in whole[2:]]


def count_threads(texts: Sequence[str]) -> torch.Tensor:
    return torch.full((len(texts), 1), torch.get_num_threads())


def test_a_worker_computes_on_one_thread():
    torch.set_num_threads(2)
    try:
        batch = next(iter(loader(make_stream(MemorySource(48), count_threads), num_workers=1)))
    finally:
        torch.set_num_threads(1)
    assert batch.texts.unique().tolist() == [1]


def is_deaf_to_interrupts(texts: Sequence[str]) -> torch.Tensor:
    return torch.full((len(texts), 1), signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


def test_an_interrupt_is_the_trainers_to_handle():
    batch = next(iter(loader(make_stream(MemorySource(48), is_deaf_to_interrupts), num_workers=1)))
    assert batch.texts.all()
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_workers_started_afresh():
    """Under spawn everything is pickled and every module imported anew."""
    stream = make_stream(MemorySource(48))
    expected = [batch.rows.tolist() for batch in loader(stream, num_workers=0)]
    spawned = loader(stream, num_workers=1)
    spawned.multiprocessing_context = "spawn"
    batches: list[Batch] = list(spawned)
    assert [batch.rows.tolist() for batch in batches] == expected
    assert all(isinstance(batch, Batch) for batch in batches)


def test_an_error_in_a_worker_arrives_as_it_was_raised():
    with pytest.raises(DataError, match="hardly a usable row") as error:
        next(iter(loader(make_stream(MemorySource(48, broken=range(48))), num_workers=1)))
    assert error.value.what == "memory has hardly a usable row"
    assert "100 rows" in error.value.found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(30):
        (folder / f"{number}.jpg").write_bytes(encode(photo(40, 50, number)))
        (folder / f"{number}.txt").write_text(f"photo {number}\nanother caption\n")
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_real_lake(pairs, tmp_path, num_workers):
    """The lake is opened again in each worker."""
    ingest([str(pairs)], str(tmp_path / "lake"))
    lake = open_lake(tmp_path / "lake")
    lake.read([0])
    batches = list(loader(make_stream(lake), num_workers=num_workers))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert len(rows) == len(set(rows)) == 24
    assert all(batch.images.float().std() > 10 for batch in batches)
