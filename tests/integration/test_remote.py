"""Lakes behind an address: a real S3 server, counted and made to fail."""

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

import numpy as np
import pytest
import torch
from PIL import Image

from lakeclip.data import order
from lakeclip.data.seed import DeepLakeDataModule
from lakeclip.data.stream import TrainSpans
from lakeclip.errors import LakeclipError, LakeError
from lakeclip.lake import engine
from lakeclip.lake.dataset import Lake, open_lake
from lakeclip.lake.ingest import fill_lake
from lakeclip.lake.remote import fetch
from lakeclip.lake.sources.base import Sample, Samples
from lakeclip.types import Batch
from tests.integration.s3 import BUCKET, Store

NUM_ROWS = 900
BATCH = 50
ON_AMAZON = any("amazon" in path.read_text().lower() for path in Path("/sys/class/dmi/id").glob("*_vendor"))
REMOTE = f"s3://{BUCKET}/noise"


def noise(number: int) -> Sample:
    """What no compression makes smaller, some 32 KB of it."""
    pixels = np.random.default_rng(number).integers(0, 255, (184, 184, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return Sample(f"n{number}", buffer.getvalue(), (f"noise {number}", "noise"), {"even": number % 2 == 0})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture(scope="module")
def local(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake on disk; its twin is at REMOTE."""
    samples = [noise(number) for number in range(NUM_ROWS)]
    path = tmp_path_factory.mktemp("lakes") / "noise"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        for place in (str(path), REMOTE):
            report = fill_lake([Samples("noise", samples, NUM_ROWS)], place)
            assert report.rows == NUM_ROWS
    return path


@pytest.fixture
def s3(store: Store, local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The store, working and at zero bytes; an empty cache; windows so small that an epoch has several."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 1)
    store.sent()
    yield store
    store.tell("pass")
    store.tell("delay 0")


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Path]:
    """File with what the reader has told the user, in any process."""
    path = tmp_path / "said"
    handler = logging.FileHandler(path)
    logging.getLogger("lakeclip").addHandler(handler)
    yield path
    logging.getLogger("lakeclip").removeHandler(handler)
    handler.close()


def size_of(lake: Lake) -> int:
    return sum(size for _, size in lake.dataset._datafiles)


def cached(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("image-*") if path.is_file())


def assert_same(batch: Batch, other: Batch) -> None:
    assert torch.equal(batch.rows, other.rows)
    assert torch.equal(batch.images, other.images)
    assert torch.equal(batch.texts, other.texts)


def test_the_same_rows_bytes_and_captions_as_on_disk(s3: Store, local: Path) -> None:
    here, there = open_lake(local), open_lake(REMOTE)
    rows = np.random.default_rng(0).permutation(NUM_ROWS)
    assert there.read(rows) == here.read(rows)
    for name in here.columns:
        assert there.column(name) == here.column(name), name
    assert there[7] == here[7]


def test_a_query_reads_the_same_rows_as_on_disk(s3: Store, local: Path) -> None:
    here, there = open_lake(local, "even"), open_lake(REMOTE, "even")
    assert len(there) == NUM_ROWS // 2
    assert there.read([5, 400, 6]) == here.read([5, 400, 6])


def test_two_workers_give_the_same_batches_as_on_disk_and_fetch_every_byte_once(s3: Store, local: Path) -> None:
    modules = [DeepLakeDataModule(str(place), batch_size=BATCH, image_size=16) for place in (local, REMOTE)]
    modules[1].num_workers = 2
    size = size_of(modules[1].source)
    here, there = (module.train_dataloader() for module in modules)
    pairs = list(zip(here, there, strict=True))
    assert len(pairs) == NUM_ROWS // BATCH
    for batch, other in pairs:
        assert_same(batch, other)
    assert 0.9 * size < s3.sent() <= 1.2 * size
    assert len(list(there)) == len(pairs)
    assert s3.sent() == 0, "the second epoch is read from the disk"


def _read_rank(rank: int) -> None:
    module = DeepLakeDataModule(REMOTE, batch_size=BATCH, image_size=16)
    stream = module.train_stream
    spans = TrainSpans(stream, BATCH, rank=rank, world_size=2, place=lambda: (0, 0))
    assert sum(len(stream[span].rows) for span in spans) == NUM_ROWS // 2


def test_two_ranks_of_a_machine_fetch_every_byte_once(s3: Store) -> None:
    size = size_of(open_lake(REMOTE))
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_read_rank, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert 0.9 * size < s3.sent() <= 1.2 * size


def test_what_will_be_read_is_fetched_ahead(s3: Store, tmp_path: Path) -> None:
    lake = open_lake(REMOTE)
    s3.tell("delay 0.5")
    began = time.monotonic()
    lake.prefetch(range(NUM_ROWS))
    assert time.monotonic() - began < 0.3
    while len(cached(tmp_path)) < 2 or any(tmp_path.rglob("*.lock")):
        time.sleep(0.05)
        assert time.monotonic() - began < 20
    s3.tell("refuse")
    assert len(lake.read(range(NUM_ROWS))) == NUM_ROWS


@pytest.mark.parametrize(
    ("how", "seconds", "deadline", "notice"),
    [
        ("refuse", 3, 30, 1),
        ("hang", 3, 2, 1),
        pytest.param("refuse", 30, 30, 10, marks=pytest.mark.slow),
        pytest.param("hang", 30, 30, 10, marks=pytest.mark.slow),
    ],
)
def test_an_outage_in_the_middle_of_an_epoch_is_waited_out_and_told_of_once(
    s3: Store,
    local: Path,
    said: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    seconds: float,
    deadline: float,
    notice: float,
) -> None:
    monkeypatch.setattr(fetch, "DEADLINE_SECONDS", deadline)
    monkeypatch.setattr(fetch, "OPEN_SECONDS", min(deadline, 10))
    monkeypatch.setattr(fetch, "NOTICE_SECONDS", notice)
    here = DeepLakeDataModule(str(local), batch_size=BATCH, image_size=16).train_dataloader()
    there = DeepLakeDataModule(REMOTE, batch_size=BATCH, image_size=16, num_workers=2).train_dataloader()
    began = 0.0
    for step, (batch, other) in enumerate(zip(here, there, strict=True)):
        assert_same(batch, other)
        if step == 0:
            s3.tell(how)
            began = time.monotonic()
            threading.Timer(seconds, s3.tell, ["pass"]).start()
    assert seconds <= time.monotonic() - began < seconds + 15
    lines = said.read_text().splitlines()
    assert len(lines) == 2, lines
    assert f"{REMOTE} has not answered for" in lines[0]
    assert f"{REMOTE} answers again, after" in lines[1]


def test_a_server_that_stays_away_ends_the_run_with_what_to_do(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = open_lake(REMOTE)
    monkeypatch.setenv("LAKECLIP_REMOTE_PATIENCE", "2")
    monkeypatch.setattr(fetch, "DEADLINE_SECONDS", 0.5)
    s3.tell("hang")
    with pytest.raises(LakeError, match=f"cannot reach the storage of {REMOTE}") as error:
        lake.read([0])
    assert s3.endpoint in error.value.found
    assert "LAKECLIP_REMOTE_PATIENCE" in error.value.next_step
    s3.tell("pass")
    monkeypatch.delenv("LAKECLIP_REMOTE_PATIENCE")
    assert len(lake.read([0])) == 1, "and it can be read again"


def test_credentials_that_are_refused_later_are_waited_for_a_little(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = open_lake(REMOTE)
    monkeypatch.setattr(fetch, "SHORT_PATIENCE_SECONDS", 1.0)
    s3.tell("deny")
    with pytest.raises(LakeError, match="refuses access"):
        lake.read([0])
    monkeypatch.setattr(fetch, "SHORT_PATIENCE_SECONDS", 20.0)
    threading.Timer(1, s3.tell, ["pass"]).start()
    assert len(lake.read([0])) == 1, "they have been renewed"


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_wrong_credentials_are_said_at_once(s3: Store) -> None:
    s3.tell("deny")
    began = time.monotonic()
    with pytest.raises(LakeError, match=f"the storage refuses access to {REMOTE}") as error:
        open_lake(REMOTE)
    assert time.monotonic() - began < 3
    assert "$AWS_ACCESS_KEY_ID" in error.value.found
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(error.value)


@pytest.mark.skipif(ON_AMAZON, reason="such a machine may have credentials of its own")
def test_no_credentials_are_said_at_once(s3: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "")  # so that it is put back as it was
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    began = time.monotonic()
    with pytest.raises(LakeError, match="refuses access") as error:
        open_lake(REMOTE)
    assert time.monotonic() - began < 5
    assert "credentials: none" in error.value.found


def test_a_server_that_hangs_from_the_start_ends_the_program_in_order(s3: Store) -> None:
    s3.tell("hang")
    result = _python(
        "import sys\n"
        "from lakeclip.errors import LakeError\n"
        "from lakeclip.lake import engine\nfrom lakeclip.lake import deadline\n"
        "engine.OPEN_SECONDS = deadline.EXIT_SECONDS = 1.0\n"
        "try:\n"
        f"    engine.open_dataset({REMOTE!r}, seconds=1.0)\n"
        "except LakeError as error:\n"
        "    print(error)\n"
        "    sys.exit(3)\n"
    )
    assert "no answer for 1 s" in result.stdout
    assert (result.returncode, result.stderr) == (3, ""), "a request that is pending would crash the exit"


@pytest.mark.slow
def test_a_bucket_that_is_not_there(s3: Store) -> None:
    with pytest.raises(LakeError, match="no bucket nowhere"):
        open_lake("s3://nowhere/noise")


def test_an_address_without_a_lake(s3: Store) -> None:
    with pytest.raises(LakeError, match="there is no Deep Lake dataset"):
        open_lake(f"s3://{BUCKET}/nothing")


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed"])
def test_a_damaged_file_of_the_cache_is_fetched_again(s3: Store, local: Path, tmp_path: Path, damage: str) -> None:
    open_lake(REMOTE).read([0])
    (path,) = cached(tmp_path)
    data = path.read_bytes()
    if damage == "changed":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(255 - byte for byte in data[middle:]))
    else:
        os.truncate(path, 0 if damage == "emptied" else len(data) // 2)
    s3.sent()
    lake = open_lake(REMOTE)
    rows = range(200)
    assert lake.read(rows) == open_lake(local).read(rows)
    assert len(data) < s3.sent() < 1.2 * len(data)
    assert path.read_bytes() == data


def test_a_file_of_the_cache_that_is_cut_while_it_is_in_use(s3: Store, local: Path, tmp_path: Path) -> None:
    lake = open_lake(REMOTE)
    lake.read([0])
    (path,) = cached(tmp_path)
    os.truncate(path, 1000)
    assert lake.read([3]) == open_lake(local).read([3])


def test_the_cache_keeps_to_its_limit(s3: Store, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0.018")
    lake = open_lake(REMOTE)
    rows = range(NUM_ROWS)
    assert lake.images(rows) == open_lake(local).images(rows)
    total = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*"))
    assert 8e6 < total <= 18e6
    assert len(cached(tmp_path)) == 2


def test_rows_are_read_without_a_cache(s3: Store, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LAKECLIP_CACHE_GB=0; a file is where the folder should be."""
    rows = [0, 800, 3]
    here = open_lake(local).read(rows)
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0")
    assert open_lake(REMOTE).read(rows) == here
    assert not cached(tmp_path)
    monkeypatch.delenv("LAKECLIP_CACHE_GB")
    (tmp_path / "file").touch()
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path / "file"))
    assert open_lake(REMOTE).read(rows) == here


def test_a_full_disk_does_not_stop_the_reading(
    s3: Store, local: Path, said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        (line,) = said.read_text().splitlines()
        assert "No space left" in line
        assert not list(disk.rglob("*.tmp"))
        del lake
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_ingest_with_wrong_credentials(s3: Store) -> None:
    s3.tell("deny")
    began = time.monotonic()
    with pytest.raises(LakeclipError, match="refuses access") as error:
        fill_lake([Samples("noise", [noise(1)], 1)], f"s3://{BUCKET}/new")
    assert time.monotonic() - began < 5
    assert "AWS_ACCESS_KEY_ID" in str(error.value)


def test_a_new_version_is_not_read_from_the_old_one_s_cache(s3: Store) -> None:
    place = f"s3://{BUCKET}/grows"
    fill_lake([Samples("noise", [noise(1)], 1)], place)
    old = open_lake(place)
    assert old.read([0])[0].captions[0] == "noise 1"
    dataset = engine.deeplake().open(place)
    dataset["captions"][0] = '["another"]'
    dataset.commit()
    assert open_lake(place).read([0])[0].captions == ("another",)
    assert old.read([0])[0].captions[0] == "noise 1"


def test_a_lake_that_is_there_is_not_overwritten(s3: Store) -> None:
    with pytest.raises(LakeError, match="there is a lake already"):
        fill_lake([Samples("noise", [noise(1)], 1)], REMOTE)
