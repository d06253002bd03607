"""What is read goes wrong in the middle of a run: a lake that is removed, bytes that change, a server that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lakeclip.cli.app import main
from lakeclip.data import order, stream
from lakeclip.data.quarantine import QUARANTINE, read_quarantine
from lakeclip.lake import write
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import fill_lake
from lakeclip.lake.remote import fetch
from lakeclip.lake.sources.base import Samples
from tests.conftest import drawn
from tests.integration.faults import (
    goes_on,
    refused,
    refused_after,
    row,
    start,
    step_of,
    train_words,
    wait_for_checkpoint,
)
from tests.integration.s3 import BUCKET, Store

NUM_ROWS = 1000
#: So that there is something left to read when the fault comes.
LONG = ("--max-steps", "120")
REMOTE = f"s3://{BUCKET}/scenes"


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an epoch of a small lake has many, and most of its chunks are not wanted in the first steps."""
    for module in (order, stream):
        monkeypatch.setattr(module, "WINDOW_BLOCKS", 1)
        monkeypatch.setattr(module, "BLOCK_ROWS", 64)


def fill(place: str) -> None:
    """A lake of ten chunks a column: each commit begins a new one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "ROWS_PER_APPEND", NUM_ROWS // 10)
        patch.setattr(write, "ROWS_PER_COMMIT", NUM_ROWS // 10)
        fill_lake([Samples("scenes", drawn(NUM_ROWS), NUM_ROWS)], place)


def test_a_lake_that_is_removed(pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake, run = tmp_path / "lake", tmp_path / "run"
    fill(str(lake))
    words = train_words(lake, tmp_path, "run", "--val-lake", str(pairs_lake), *LONG)
    errors = refused_after(run, lambda: os.rename(lake, tmp_path / "elsewhere"), words, capsys)
    before = step_of(run)
    assert str(lake) in refused(["train", "--resume", str(run)], capsys)
    os.rename(tmp_path / "elsewhere", lake)
    goes_on(run, before=before, steps=120)
    row(
        "The lake's folder is removed or renamed",
        errors,
        "the last checkpoint, whole",
        "`lakeclip train --resume RUN`, once it is back",
        {run: "RUN", lake: "LAKE"},
    )


def chunk(lake: Path, column: str) -> Path:
    files = open_lake(lake).dataset._datafiles_report[column].insert_datafiles
    return lake / files[0].filename


def test_images_whose_bytes_change(
    pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Of each of twenty images one bit. The rows are found by the checksum, and others stand in for them."""
    lake, run = tmp_path / "lake", tmp_path / "run"
    shutil.copytree(pairs_lake, lake)
    file = chunk(lake, "image")
    data = bytearray(file.read_bytes())
    images = open_lake(lake).images(range(0, 200, 10))
    for image in images:
        data[data.index(image) + len(image) // 2] ^= 1
    file.write_bytes(data)
    main(train_words(lake, tmp_path, "run", "--max-steps", "60", "--val-fraction", "0.1"))
    assert step_of(run) == 60, "two epochs: every row was wanted"
    found = read_quarantine(run / QUARANTINE)[str(lake)]
    assert set(found) <= set(range(0, 200, 10)), "these and no others"
    assert len(found) > 10
    assert f"{len(found)} rows of" in capsys.readouterr().out
    said = next(r.getMessage() for r in caplog.records if "cannot be used" in r.getMessage())
    row(
        "Bytes of images change in a chunk of the lake",
        f"warning: {said.partition(': checksum')[0]}",
        "every other row; the damaged ones are listed in `RUN/quarantine.jsonl`",
        "by itself: another row stands in for each; `--mark-unusable` marks them in the lake",
        {run: "RUN", lake: "LAKE"},
    )


#: Prints where in the second half of a file a byte makes captions unreadable. In a process of its own: some bytes there
#: take Deep Lake down.
SEARCH = """
import sys
from pathlib import Path
from lakeclip.errors import LakeError
from lakeclip.lake.dataset import open_lake
lake, file = sys.argv[1], Path(sys.argv[2])
whole = file.read_bytes()
for place in range(len(whole) // 2, len(whole)):
    file.write_bytes(whole[:place] + bytes([0xE6]) + whole[place + 1 :])
    try:
        open_lake(lake).captions(range(240))
    except LakeError:
        break
file.write_bytes(whole)
print(place)
"""


def test_captions_whose_bytes_change(pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte that no text has. (Captions have no checksum: what is still a text goes unnoticed.)"""
    lake, run = tmp_path / "lake", tmp_path / "run"
    shutil.copytree(pairs_lake, lake)
    words = train_words(lake, tmp_path, "run", "--val-fraction", "0.1")
    file = chunk(lake, "captions")
    whole = file.read_bytes()
    search = [sys.executable, "-c", SEARCH, str(lake), str(file)]
    place = int(subprocess.run(search, capture_output=True, text=True, check=True, timeout=60).stdout)
    file.write_bytes(whole[:place] + b"\xe6" + whole[place + 1 :])
    errors = refused(words, capsys)
    file.write_bytes(whole)
    # It had come to a checkpoint, or not.
    begun = (run / "checkpoints/last.ckpt").exists()
    main([*(["train", "--resume", str(run)] if begun else words), "--max-steps", "10"])
    assert step_of(run) == 10
    row(
        "Bytes of captions change in a chunk of the lake",
        errors.replace(f"lakeclip train --resume {run}", "the same command again"),
        "every row, once the chunk is put right. Captions have no checksum: what is still text goes unnoticed",
        "the same command, or `lakeclip train --resume RUN`, with a lake that is whole",
        {run: "RUN", lake: "LAKE", errors.partition("found:")[2].partition("\n")[0].strip(): "REASON"},
    )


# ── a server ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("store")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        fill(REMOTE)
        yield store


@pytest.fixture
def s3(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The store, working; an empty cache; and little patience."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LAKECLIP_REMOTE_PATIENCE", "2")
    monkeypatch.setattr(fetch, "SHORT_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(fetch, "DEADLINE_SECONDS", 5.0)
    yield store
    store.tell("pass")
    store.tell("delay 0")


#: In a process of its own: what waits inside Deep Lake's own code hears of no signal and no timeout.
IMPATIENT = """
import sys
from lakeclip.data import order, stream
from lakeclip.lake.remote import fetch
order.WINDOW_BLOCKS = stream.WINDOW_BLOCKS = 1
order.BLOCK_ROWS = stream.BLOCK_ROWS = 64
fetch.SHORT_PATIENCE_SECONDS, fetch.DEADLINE_SECONDS, fetch.NOTICE_SECONDS = 1.0, 5.0, float(sys.argv.pop(1))
from lakeclip.cli.app import main
main()
"""


def run_remotely(run: Path, fault: Callable[[], object], words: list[str], notice: float = 10.0) -> tuple[int, str]:
    """The code and the errors of a run that has the fault as soon as it has a checkpoint."""
    process = start([sys.executable, "-c", IMPATIENT, str(notice), *words])
    try:
        wait_for_checkpoint(run, process)
        fault()
        errors = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert "Traceback" not in errors
    return process.returncode, errors


@pytest.mark.parametrize("how", ["refuse", "deny"])
def test_a_server_that_fails(how: str, s3: Store, pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(REMOTE, tmp_path, "run", "--val-lake", str(pairs_lake), *LONG)
    code, errors = run_remotely(run, lambda: s3.tell(how), words)
    assert code == 2, errors
    errors = errors[errors.index("error: ") :]
    assert "never-to-be-shown" not in errors
    before = step_of(run)
    s3.tell("pass")
    goes_on(run, before=before, steps=120)
    kind = "DENIED" if how == "deny" else "REASON"
    reason = errors.partition("found:")[2].partition("; waited")[0].strip()
    row(
        "S3 refuses the credentials (403)" if how == "deny" else "S3 dies",
        errors,
        "the last checkpoint, whole; what was fetched is in the cache",
        "`lakeclip train --resume RUN`. Before that the run waits by itself: "
        + ("one minute" if how == "deny" else "ten minutes, or `$LAKECLIP_REMOTE_PATIENCE` seconds"),
        {run: "RUN", REMOTE: "s3://BUCKET/LAKE", s3.endpoint: "ENDPOINT", reason: kind},
    )


def test_a_server_that_is_slow(s3: Store, pairs_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("LAKECLIP_REMOTE_PATIENCE", "60")
    words = train_words(REMOTE, tmp_path, "run", "--val-lake", str(pairs_lake), *LONG)
    code, errors = run_remotely(run, lambda: s3.tell("delay 1.5"), words, notice=1.0)
    assert code == 0, errors
    assert step_of(run) == 120
    said = [line for line in errors.splitlines() if REMOTE in line]
    assert said
    assert [" answers again" in line for line in said] == [False, True] * (len(said) // 2), said
    row(
        "S3 is slow",
        "\n".join(f"warning: {line.partition(' (')[0]}" for line in said[:2]),
        "everything",
        "by itself. Nothing is said of answers that take less than ten seconds",
        {run: "RUN", REMOTE: "s3://BUCKET/LAKE"},
    )
