"""Data that fails in the middle of a run: a removed lake, changed bytes, a failing server."""

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
from lakeclip.ingestion import writer
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.remote import fetch
from tests.conftest import scene_samples
from tests.integration.faults import (
    check_resume,
    check_row,
    error_after_fault,
    error_of,
    last_step,
    start,
    train_args,
)
from tests.integration.s3_server import BUCKET, S3Server
from tests.integration.steps import HOLD_AT, release, wait_until_held

NUM_ROWS = 1000
#: Long enough that data is still to be read when the fault occurs.
LONG = ("--max-steps", "120")
REMOTE = f"s3://{BUCKET}/scenes"


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the shuffle windows, so that the first steps need only a few chunks of a small lake."""
    for module in (order, stream):
        monkeypatch.setattr(module, "WINDOW_BLOCKS", 1)
        monkeypatch.setattr(module, "BLOCK_ROWS", 64)


def fill(place: str) -> None:
    """Write a lake with a hundred chunks per column, as each commit starts a new one: checks before a run read some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "ROWS_PER_APPEND", NUM_ROWS // 100)
        patch.setattr(writer, "ROWS_PER_COMMIT", NUM_ROWS // 100)
        fill_lake([Samples("scenes", scene_samples(NUM_ROWS), NUM_ROWS)], place)


@pytest.mark.slow
def test_a_removed_lake(pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake, run = tmp_path / "lake", tmp_path / "run"
    fill(str(lake))
    args = train_args(lake, tmp_path, "run", "--val-lake", str(pairs_lake), *LONG)
    errors = error_after_fault(run, lambda: os.rename(lake, tmp_path / "elsewhere"), args, capsys)
    before = last_step(run)
    assert str(lake) in error_of(["train", "--resume", str(run)], capsys)
    os.rename(tmp_path / "elsewhere", lake)
    check_resume(run, before=before, steps=120)
    check_row(
        "The lake's folder is removed or renamed",
        errors,
        "the last checkpoint, complete",
        "`lakeclip train --resume RUN`, once the lake is back",
        {run: "RUN", lake: "LAKE"},
    )


def chunk(lake: Path, column: str) -> Path:
    files = open_lake(lake).dataset._datafiles_report[column].insert_datafiles
    return lake / files[0].filename


@pytest.mark.slow
def test_changed_bytes_of_images(
    pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One bit of each of twenty images. Checksums detect the rows, and other rows replace them."""
    lake, run = tmp_path / "lake", tmp_path / "run"
    shutil.copytree(pairs_lake, lake)
    file = chunk(lake, "image")
    data = bytearray(file.read_bytes())
    images = open_lake(lake).images(range(0, 200, 10))
    for image in images:
        data[data.index(image) + len(image) // 2] ^= 1
    file.write_bytes(data)
    main(train_args(lake, tmp_path, "run", "--max-steps", "60", "--val-fraction", "0.1"))
    assert last_step(run) == 60, "two epochs: every row was requested"
    found = read_quarantine(run / QUARANTINE)[str(lake)]
    assert set(found) <= set(range(0, 200, 10)), "these and no others"
    assert len(found) > 10
    assert f"{len(found)} rows of" in capsys.readouterr().out
    message = next(r.getMessage() for r in caplog.records if "cannot be used" in r.getMessage())
    check_row(
        "Bytes of images change in a chunk of the lake",
        f"warning: {message.partition(': checksum')[0]}",
        "all other rows; the damaged ones are listed in `RUN/quarantine.jsonl`",
        "automatically, with another row in place of each; `--mark-unusable` marks them in the lake",
        {run: "RUN", lake: "LAKE"},
    )


#: Prints an offset in the second half of a file where a byte makes captions unreadable. It runs in a subprocess, as
#: some bytes crash Deep Lake.
SEARCH = """
import sys
from pathlib import Path
from lakeclip.errors import LakeError
from lakeclip.lake.dataset import open_lake
lake, file = sys.argv[1], Path(sys.argv[2])
whole = file.read_bytes()
for offset in range(len(whole) // 2, len(whole)):
    file.write_bytes(whole[:offset] + bytes([0xE6]) + whole[offset + 1 :])
    try:
        open_lake(lake).captions(range(240))
    except LakeError:
        break
file.write_bytes(whole)
print(offset)
"""


def test_changed_bytes_of_captions(pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte that is invalid UTF-8. (Captions have no checksum: changes that leave valid text go unnoticed.)"""
    lake, run = tmp_path / "lake", tmp_path / "run"
    shutil.copytree(pairs_lake, lake)
    args = train_args(lake, tmp_path, "run", "--val-fraction", "0.1")
    file = chunk(lake, "captions")
    whole = file.read_bytes()
    search = [sys.executable, "-c", SEARCH, str(lake), str(file)]
    offset = int(subprocess.run(search, capture_output=True, text=True, check=True, timeout=60).stdout)
    file.write_bytes(whole[:offset] + b"\xe6" + whole[offset + 1 :])
    errors = error_of(args, capsys)
    file.write_bytes(whole)
    # The run may or may not have written a checkpoint.
    has_checkpoint = (run / "checkpoints/last.ckpt").exists()
    main([*(["train", "--resume", str(run)] if has_checkpoint else args), "--max-steps", "10"])
    assert last_step(run) == 10
    check_row(
        "Bytes of captions change in a chunk of the lake",
        errors.replace(f"lakeclip train --resume {run}", "the same command again"),
        "all rows, once the chunk is restored. Captions have no checksum: changes that leave valid text go unnoticed",
        "the same command, or `lakeclip train --resume RUN`, with an undamaged lake",
        {run: "RUN", lake: "LAKE", errors.partition("found:")[2].partition("\n")[0].strip(): "REASON"},
    )


# ── a server ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("store")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        fill(REMOTE)
        yield store


@pytest.fixture
def s3(store: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """Provide the working store, an empty cache, and short timeouts."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LAKECLIP_REMOTE_PATIENCE", "2")
    monkeypatch.setattr(fetch, "SHORT_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(fetch, "REQUEST_SECONDS", 5.0)
    yield store
    store.command("pass")
    store.command("delay 0")


#: A command with short timeouts, in a subprocess: a wait inside Deep Lake's code reacts to no signal and no timeout.
SHORT_TIMEOUTS = """
import sys
from lakeclip.data import order, stream
from lakeclip.lake.remote import fetch
order.WINDOW_BLOCKS = stream.WINDOW_BLOCKS = 1
order.BLOCK_ROWS = stream.BLOCK_ROWS = 64
fetch.SHORT_PATIENCE_SECONDS, fetch.REQUEST_SECONDS, fetch.NOTICE_SECONDS = 1.0, 5.0, float(sys.argv.pop(1))
from lakeclip.cli.app import main
main()
"""


def run_remotely(run: Path, fault: Callable[[], object], args: list[str], notice: float = 10.0) -> tuple[int, str]:
    """Provoke a fault once a run has a checkpoint; return its exit code and standard error."""
    process = start([sys.executable, "-c", SHORT_TIMEOUTS, str(notice), *args], **{HOLD_AT: f"15:{run.parent}"})
    try:
        wait_until_held(run.parent, lambda: process.poll() is None)
        assert (run / "checkpoints/last.ckpt").exists()
        fault()
        release(run.parent)
        errors = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert "Traceback" not in errors
    return process.returncode, errors


@pytest.mark.parametrize("how", ["refuse", "deny"])
@pytest.mark.slow
def test_a_failing_server(how: str, s3: S3Server, pairs_lake: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = train_args(REMOTE, tmp_path, "run", "--val-lake", str(pairs_lake), *LONG)
    code, errors = run_remotely(run, lambda: s3.command(how), args)
    assert code == 2, errors
    errors = errors[errors.index("error: ") :]
    assert "never-to-be-shown" not in errors
    before = last_step(run)
    s3.command("pass")
    check_resume(run, before=before, steps=120)
    kind = "DENIED" if how == "deny" else "REASON"
    reason = errors.partition("found:")[2].partition("; waited")[0].strip()
    check_row(
        "S3 refuses the credentials (403)" if how == "deny" else "S3 stops answering",
        errors,
        "the last checkpoint, complete; fetched data stays in the cache",
        "`lakeclip train --resume RUN`. Before it ends, the run waits "
        + ("one minute" if how == "deny" else "ten minutes, or `$LAKECLIP_REMOTE_PATIENCE` seconds"),
        {run: "RUN", REMOTE: "s3://BUCKET/LAKE", s3.endpoint: "ENDPOINT", reason: kind},
    )


@pytest.mark.slow
def test_a_slow_server(s3: S3Server, pairs_lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("LAKECLIP_REMOTE_PATIENCE", "60")
    args = train_args(REMOTE, tmp_path, "run", "--val-lake", str(pairs_lake), *LONG)
    code, errors = run_remotely(run, lambda: s3.command("delay 3"), args, notice=0.5)
    assert code == 0, errors
    assert last_step(run) == 120
    messages = [line for line in errors.splitlines() if REMOTE in line]
    assert messages
    assert [" answers again" in line for line in messages] == [False, True] * (len(messages) // 2), messages
    check_row(
        "S3 is slow",
        "\n".join(f"warning: {line.partition(' (')[0]}" for line in messages[:2]),
        "everything",
        "automatically. Delays below ten seconds are not reported",
        {run: "RUN", REMOTE: "s3://BUCKET/LAKE"},
    )
