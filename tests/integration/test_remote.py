"""Tests of remote lakes on an S3 server whose traffic is counted and which can be made to fail."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lakeclip.compat.train_clip_data import DeepLakeDataModule
from lakeclip.data import order
from lakeclip.data.stream import TrainSampler
from lakeclip.data.workers import WorkerSetup
from lakeclip.errors import LakeclipError, LakeError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample, Samples
from lakeclip.lake import engine
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.remote import fetch
from lakeclip.types import Batch
from tests.integration.s3_server import BUCKET, S3Server

NUM_ROWS = 900
BATCH = 50
ON_AMAZON = any("amazon" in path.read_text().lower() for path in Path("/sys/class/dmi/id").glob("*_vendor"))
REMOTE = f"s3://{BUCKET}/noise"


def noise(number: int) -> Sample:
    """Return a sample of incompressible noise, some 32 KB."""
    pixels = np.random.default_rng(number).integers(0, 255, (184, 184, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return Sample(f"n{number}", buffer.getvalue(), (f"noise {number}", "noise"), {"even": number % 2 == 0})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def local(store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a local lake; a lake with the same rows is at REMOTE."""
    samples = [noise(number) for number in range(NUM_ROWS)]
    path = tmp_path_factory.mktemp("lakes") / "noise"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        for target in (str(path), REMOTE):
            report = fill_lake([Samples("noise", samples, NUM_ROWS)], target)
            assert report.rows == NUM_ROWS
    return path


@pytest.fixture
def s3(store: S3Server, local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """Yield the working server, with an empty cache, and small windows so that an epoch has several."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 1)
    store.bytes_sent()
    yield store
    store.command("pass")
    store.command("delay 0")


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Yield the file with the log messages of all processes."""
    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    logging.getLogger("lakeclip").addHandler(handler)
    yield path
    logging.getLogger("lakeclip").removeHandler(handler)
    handler.close()


class Settings(WorkerSetup):
    """Initializer of workers that gives modules the same settings there, and logs to a file."""

    def __init__(self, settings: dict[tuple[ModuleType, str], float], log: Path | None = None) -> None:
        self.settings = {(module.__name__, name): value for (module, name), value in settings.items()}
        self.log = log
        for (module, name), value in settings.items():
            assert getattr(module, name) == value, "as in this process"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "settings": self.settings, "log": self.log}

    def __call__(self, worker: int) -> None:
        super().__call__(worker)
        for (module, name), value in self.settings.items():
            setattr(sys.modules[module], name, value)
        if self.log is not None:
            logging.getLogger("lakeclip").addHandler(logging.FileHandler(self.log))


def size_of(lake: Lake) -> int:
    return sum(size for _, size in lake.dataset._datafiles)


def cached_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("image-*") if path.is_file())


def assert_same(batch: Batch, other: Batch) -> None:
    assert torch.equal(batch.rows, other.rows)
    assert torch.equal(batch.images, other.images)
    assert torch.equal(batch.texts, other.texts)


def test_a_remote_lake_gives_the_same_rows_as_a_local_one(s3: S3Server, local: Path) -> None:
    local_lake, remote_lake = open_lake(local), open_lake(REMOTE)
    rows = np.random.default_rng(0).permutation(NUM_ROWS)
    assert remote_lake.read(rows) == local_lake.read(rows)
    for name in local_lake.columns:
        assert remote_lake.column(name) == local_lake.column(name), name
    assert remote_lake[7] == local_lake[7]


def test_a_query_gives_the_same_rows_as_on_a_local_lake(s3: S3Server, local: Path) -> None:
    local_lake, remote_lake = open_lake(local, "even"), open_lake(REMOTE, "even")
    assert len(remote_lake) == NUM_ROWS // 2
    assert remote_lake.read([5, 400, 6]) == local_lake.read([5, 400, 6])


def test_two_workers_give_the_same_batches_and_fetch_every_byte_once(s3: S3Server, local: Path) -> None:
    modules = [DeepLakeDataModule(str(lake), batch_size=BATCH, image_size=16) for lake in (local, REMOTE)]
    modules[1].num_workers = 2
    size = size_of(modules[1].source)
    here, there = (module.train_dataloader() for module in modules)
    there.worker_init_fn = Settings({(order, "WINDOW_BLOCKS"): 1})
    pairs = list(zip(here, there, strict=True))
    assert len(pairs) == NUM_ROWS // BATCH
    for batch, other in pairs:
        assert_same(batch, other)
    assert 0.9 * size < s3.bytes_sent() <= 1.2 * size
    assert len(list(there)) == len(pairs)
    assert s3.bytes_sent() == 0, "the second epoch is read from the disk"


def _read_rank(rank: int) -> None:
    order.WINDOW_BLOCKS = 1
    module = DeepLakeDataModule(REMOTE, batch_size=BATCH, image_size=16)
    stream = module.train_stream
    sampler = TrainSampler(stream, BATCH, rank=rank, world_size=2, start_position=lambda: (0, 0))
    assert sum(len(stream[span].rows) for span in sampler) == NUM_ROWS // 2


@pytest.mark.slow
def test_two_ranks_of_a_machine_fetch_every_byte_once(s3: S3Server) -> None:
    size = size_of(open_lake(REMOTE))
    # As a launcher starts them. A fork of this process would have what other tests have left pending.
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_read_rank, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
        assert rank.exitcode == 0
    assert 0.9 * size < s3.bytes_sent() <= 1.2 * size


def test_prefetched_rows_are_read_without_the_server(s3: S3Server, tmp_path: Path) -> None:
    lake = open_lake(REMOTE)
    s3.command("hold")
    lake.prefetch(range(NUM_ROWS))
    assert not cached_images(tmp_path), "it waited for the answers"
    s3.command("pass")
    began = time.monotonic()
    while len(cached_images(tmp_path)) < 2 or any(tmp_path.rglob("*.lock")):
        time.sleep(0.05)
        assert time.monotonic() - began < 60
    s3.command("refuse")
    assert len(lake.read(range(NUM_ROWS))) == NUM_ROWS


@pytest.mark.parametrize(
    ("mode", "seconds", "deadline", "notice"),
    [
        ("refuse", 5, 30, 3),
        pytest.param("hang", 5, 4, 3, marks=pytest.mark.slow),
        pytest.param("refuse", 30, 30, 10, marks=pytest.mark.slow),
        pytest.param("hang", 30, 30, 10, marks=pytest.mark.slow),
    ],
)
def test_a_run_waits_for_the_end_of_an_outage_and_logs_it_once(
    s3: S3Server,
    local: Path,
    log_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    seconds: float,
    deadline: float,
    notice: float,
) -> None:
    monkeypatch.setattr(fetch, "REQUEST_SECONDS", deadline)
    monkeypatch.setattr(fetch, "OPEN_SECONDS", min(deadline, 10))
    monkeypatch.setattr(fetch, "NOTICE_SECONDS", notice)
    here = DeepLakeDataModule(str(local), batch_size=BATCH, image_size=16).train_dataloader()
    there = DeepLakeDataModule(REMOTE, batch_size=BATCH, image_size=16, num_workers=2).train_dataloader()
    settings = {(order, "WINDOW_BLOCKS"): 1, (fetch, "REQUEST_SECONDS"): deadline, (fetch, "NOTICE_SECONDS"): notice}
    there.worker_init_fn = Settings({**settings, (fetch, "OPEN_SECONDS"): min(deadline, 10)}, log_file)
    ended = threading.Event()

    def end() -> None:
        s3.command("pass")
        ended.set()

    for step, (batch, other) in enumerate(zip(here, there, strict=True)):
        assert_same(batch, other)
        if step == 0:
            s3.command(mode)
            threading.Timer(seconds, end).start()
    assert ended.is_set(), "it did not wait"
    lines = log_file.read_text().splitlines()
    assert len(lines) == 2, lines
    assert f"{REMOTE} has not answered for" in lines[0]
    assert f"{REMOTE} answers again, after" in lines[1]


def test_a_server_that_stays_down_ends_the_run(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = open_lake(REMOTE)
    monkeypatch.setenv("LAKECLIP_REMOTE_PATIENCE", "2")
    monkeypatch.setattr(fetch, "REQUEST_SECONDS", 0.5)
    s3.command("hang")
    with pytest.raises(LakeError, match=f"cannot reach the storage of {REMOTE}") as error:
        lake.read([0])
    assert s3.endpoint in error.value.found
    assert "LAKECLIP_REMOTE_PATIENCE" in error.value.next_step
    s3.command("pass")
    monkeypatch.delenv("LAKECLIP_REMOTE_PATIENCE")
    assert len(lake.read([0])) == 1, "and it can be read again"


def test_a_run_waits_a_while_for_refused_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = open_lake(REMOTE)
    monkeypatch.setattr(fetch, "SHORT_PATIENCE_SECONDS", 1.0)
    s3.command("deny")
    with pytest.raises(LakeError, match="refuses access"):
        lake.read([0])
    monkeypatch.setattr(fetch, "SHORT_PATIENCE_SECONDS", 60.0)
    threading.Timer(1, s3.command, ["pass"]).start()
    assert len(lake.read([0])) == 1, "they have been renewed"


def _run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_wrong_credentials_raise_at_once(s3: S3Server) -> None:
    s3.command("deny")
    began = time.monotonic()
    with pytest.raises(LakeError, match=f"the storage refuses access to {REMOTE}") as error:
        open_lake(REMOTE)
    assert time.monotonic() - began < fetch.SHORT_PATIENCE_SECONDS / 2
    assert "$AWS_ACCESS_KEY_ID" in error.value.found
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(error.value)


@pytest.mark.skipif(ON_AMAZON, reason="such a machine may have credentials of its own")
def test_missing_credentials_raise_at_once(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "")  # so that it is put back as it was
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    began = time.monotonic()
    with pytest.raises(LakeError, match="refuses access") as error:
        open_lake(REMOTE)
    assert time.monotonic() - began < fetch.SHORT_PATIENCE_SECONDS / 2
    assert "credentials: none" in error.value.found


def test_a_server_that_hangs_from_the_start_does_not_crash_the_exit(s3: S3Server) -> None:
    s3.command("hang")
    result = _run_python(
        "import sys\n"
        "from lakeclip.errors import LakeError\n"
        "from lakeclip.lake import engine, timeouts\n"
        "engine.OPEN_SECONDS = timeouts.EXIT_SECONDS = 1.0\n"
        "try:\n"
        f"    engine.open_dataset({REMOTE!r}, seconds=1.0)\n"
        "except LakeError as error:\n"
        "    print(error)\n"
        "    sys.exit(3)\n"
    )
    assert "no answer for 1 s" in result.stdout
    assert (result.returncode, result.stderr) == (3, ""), "a request that is pending would crash the exit"


@pytest.mark.slow
def test_a_missing_bucket(s3: S3Server) -> None:
    with pytest.raises(LakeError, match="no bucket nowhere"):
        open_lake("s3://nowhere/noise")


def test_a_url_without_a_lake(s3: S3Server) -> None:
    with pytest.raises(LakeError, match="there is no Deep Lake dataset"):
        open_lake(f"s3://{BUCKET}/nothing")


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed"])
def test_a_damaged_cache_file_is_fetched_again(s3: S3Server, local: Path, tmp_path: Path, damage: str) -> None:
    open_lake(REMOTE).read([0])
    (path,) = cached_images(tmp_path)
    data = path.read_bytes()
    if damage == "changed":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(255 - byte for byte in data[middle:]))
    else:
        os.truncate(path, 0 if damage == "emptied" else len(data) // 2)
    s3.bytes_sent()
    lake = open_lake(REMOTE)
    rows = range(200)
    assert lake.read(rows) == open_lake(local).read(rows)
    assert len(data) < s3.bytes_sent() < 1.2 * len(data)
    assert path.read_bytes() == data


def test_a_cache_file_that_is_truncated_while_in_use(s3: S3Server, local: Path, tmp_path: Path) -> None:
    lake = open_lake(REMOTE)
    lake.read([0])
    (path,) = cached_images(tmp_path)
    os.truncate(path, 1000)
    assert lake.read([3]) == open_lake(local).read([3])


def test_the_cache_keeps_its_limit(s3: S3Server, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0.018")
    lake = open_lake(REMOTE)
    rows = range(NUM_ROWS)
    assert lake.images(rows) == open_lake(local).images(rows)
    total = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*"))
    assert 8e6 < total <= 18e6
    assert len(cached_images(tmp_path)) == 2


def test_reading_without_a_cache(s3: S3Server, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the cache off with LAKECLIP_CACHE_GB=0, and with a file in place of its folder."""
    rows = [0, 800, 3]
    expected = open_lake(local).read(rows)
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0")
    assert open_lake(REMOTE).read(rows) == expected
    assert not cached_images(tmp_path)
    monkeypatch.delenv("LAKECLIP_CACHE_GB")
    (tmp_path / "file").touch()
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path / "file"))
    assert open_lake(REMOTE).read(rows) == expected


def test_a_full_disk_does_not_stop_the_reading(
    s3: S3Server, local: Path, log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        monkeypatch.setenv("LAKECLIP_CACHE", str(disk))
        monkeypatch.setenv("LAKECLIP_CACHE_GB", "1")
        rows = range(NUM_ROWS)
        lake = open_lake(REMOTE)
        assert lake.read(rows) == open_lake(local).read(rows)
        (line,) = log_file.read_text().splitlines()
        assert "No space left" in line
        assert not list(disk.rglob("*.tmp"))
        del lake
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_ingest_with_wrong_credentials(s3: S3Server) -> None:
    s3.command("deny")
    began = time.monotonic()
    with pytest.raises(LakeclipError, match="refuses access") as error:
        fill_lake([Samples("noise", [noise(1)], 1)], f"s3://{BUCKET}/new")
    assert time.monotonic() - began < fetch.SHORT_PATIENCE_SECONDS / 2
    assert "AWS_ACCESS_KEY_ID" in str(error.value)


def test_versions_have_separate_caches(s3: S3Server) -> None:
    url = f"s3://{BUCKET}/grows"
    fill_lake([Samples("noise", [noise(1)], 1)], url)
    old = open_lake(url)
    assert old.read([0])[0].captions[0] == "noise 1"
    dataset = engine.deeplake().open(url)
    dataset["captions"][0] = '["another"]'
    dataset.commit()
    assert open_lake(url).read([0])[0].captions == ("another",)
    assert old.read([0])[0].captions[0] == "noise 1"


def test_an_existing_lake_is_not_overwritten(s3: S3Server) -> None:
    with pytest.raises(LakeError, match="there is already a lake"):
        fill_lake([Samples("noise", [noise(1)], 1)], REMOTE)
