"""Test batches that come from real worker processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lakeclip.data.order import Order, hold_out
from lakeclip.data.plan import SourcePlan
from lakeclip.data.stream import PairLoader, PairStream, TrainSampler
from lakeclip.data.transforms import TrainTransform
from lakeclip.errors import DataError
from lakeclip.ingestion.run import ingest
from lakeclip.lake.dataset import open_lake
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Batch
from tests.integration.processes import communicate
from tests.unit.data.memory_source import MemorySource, encode, photo

GLOBAL_BATCH = 24


def make_stream(source, tokenize=None) -> PairStream:
    rows, _ = hold_out(len(source), 0)
    return PairStream(source, SourcePlan(rows, Order(len(rows), 5)), TrainTransform(8), tokenize or Tokenizer())


def make_loader(
    stream: PairStream, *, rank: int = 0, world_size: int = 1, num_workers: int, first: int = 0
) -> PairLoader:
    epochs = iter(range(100))
    sampler = TrainSampler(
        stream,
        GLOBAL_BATCH // world_size,
        rank=rank,
        world_size=world_size,
        start_position=lambda: (next(epochs), first),
    )
    return PairLoader(stream, sampler, num_workers)


def global_batches(
    source, *, world_size: int, num_workers: int, first: int = 0
) -> list[tuple[torch.Tensor, list[int]]]:
    """Return images and rows of two epochs, with the ranks' slices concatenated."""
    ranks = [
        make_loader(make_stream(source), rank=rank, world_size=world_size, num_workers=num_workers, first=first)
        for rank in range(world_size)
    ]
    batches: list[tuple[torch.Tensor, list[int]]] = []
    for _ in range(2):
        for slices in zip(*ranks, strict=True):
            batches.append(
                (torch.cat([part.images for part in slices]), torch.cat([part.rows for part in slices]).tolist())
            )
    return batches


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize(
    ("world_size", "num_workers"),
    [
        pair if pair in ((1, 2), (2, 0), (2, 1), (2, 2), (3, 3)) else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in itertools.product((1, 2, 3, 8), range(5))
    ],
)
def test_the_same_global_batches_for_any_ranks_and_workers(world_size, num_workers):
    """Guard against missing sharding, as in train-CLIP."""
    source = MemorySource(135, broken=[5, 40], captions=3)
    expected = global_batches(source, world_size=1, num_workers=0)
    actual = global_batches(source, world_size=world_size, num_workers=num_workers)
    assert len(actual) == len(expected) == 2 * (135 // GLOBAL_BATCH)
    for (images, rows), (expected_images, expected_rows) in zip(actual, expected, strict=True):
        assert rows == expected_rows
        assert images.equal(expected_images)


def test_an_epoch_can_start_at_any_position():
    source = MemorySource(135)
    full = global_batches(source, world_size=1, num_workers=0)[:5]
    rest = global_batches(source, world_size=2, num_workers=2, first=48)[:3]
    assert [rows for _, rows in rest] == [rows for _, rows in full[2:]]


def count_threads(texts: Sequence[str]) -> torch.Tensor:
    return torch.full((len(texts), 1), torch.get_num_threads())


def test_a_worker_computes_on_one_thread():
    torch.set_num_threads(2)
    try:
        batch = next(iter(make_loader(make_stream(MemorySource(48), count_threads), num_workers=1)))
    finally:
        torch.set_num_threads(1)
    assert batch.texts.unique().tolist() == [1]


def ignores_interrupts(texts: Sequence[str]) -> torch.Tensor:
    return torch.full((len(texts), 1), signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


def test_workers_ignore_interrupts_and_the_trainer_does_not():
    batch = next(iter(make_loader(make_stream(MemorySource(48), ignores_interrupts), num_workers=1)))
    assert batch.texts.all()
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_spawned_workers():
    """Check the spawn method, which pickles everything and imports every module again."""
    stream = make_stream(MemorySource(48))
    expected = [batch.rows.tolist() for batch in make_loader(stream, num_workers=0)]
    spawned = make_loader(stream, num_workers=1)
    spawned.multiprocessing_context = "spawn"
    batches: list[Batch] = list(spawned)
    assert [batch.rows.tolist() for batch in batches] == expected
    assert all(isinstance(batch, Batch) for batch in batches)


def test_an_error_in_a_worker_keeps_its_type_and_text():
    with pytest.raises(DataError, match="hardly any usable rows") as error:
        next(iter(make_loader(make_stream(MemorySource(48, broken=range(48))), num_workers=1)))
    assert error.value.what == "memory has hardly any usable rows"
    assert "100 rows" in error.value.found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(30):
        (folder / f"{number}.jpg").write_bytes(encode(photo(40, 50, number)))
        (folder / f"{number}.txt").write_text(f"photo {number}\nanother caption\n")
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_a_lake(pairs, tmp_path, num_workers):
    """Check that each worker opens the lake again."""
    ingest([str(pairs)], str(tmp_path / "lake"))
    lake = open_lake(tmp_path / "lake")
    lake.read([0])
    batches = list(make_loader(make_stream(lake), num_workers=num_workers))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert len(rows) == len(set(rows)) == 24
    assert all(batch.images.float().std() > 10 for batch in batches)


SCRIPT = """
import sys, time
from lakeclip.text.tokenizer import Tokenizer
from tests.integration.test_data_workers import make_loader, make_stream
from tests.unit.data.memory_source import MemorySource

tokenizer = Tokenizer()

def tokenize(texts):
    return tokenizer(texts)

def main(tokenize):
    loader = make_loader(make_stream(MemorySource(48), tokenize), num_workers=2)
    batch = next(iter(loader))
    print(*batch.rows.tolist(), *(worker.pid for worker in loader._iterator._workers), flush=True)
    if sys.argv[1] == "wait":
        time.sleep(100)
"""


def start_script(folder: Path, end: str, argument: str = "") -> subprocess.Popen[str]:
    (folder / "script.py").write_text(SCRIPT + end)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), argument],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(
    "end",
    ["main(None)", pytest.param('if __name__ == "__main__":\n    main(tokenize)', marks=pytest.mark.slow)],
    ids=["without a main guard", "with a function of the script"],
)
def test_a_script_is_not_run_again_by_its_workers(tmp_path: Path, end: str) -> None:
    with start_script(tmp_path, end) as process:
        out, err = communicate(process, 120)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1
    assert len(out.split()) == GLOBAL_BATCH + 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_of_a_killed_process_end(tmp_path: Path) -> None:
    with start_script(tmp_path, "main(None)", "wait") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        workers = process.stdout.readline().split()[-2:]
        process.kill()
        began = time.monotonic()
        assert "Error" not in process.stderr.read()  # until the last process that could write to it has ended
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() - began < 60
        time.sleep(0.1)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
