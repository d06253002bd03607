"""A disk that fills up under a run and under an ingest.

The disk is full_disk.c, which answers ENOSPC between the program and the kernel: a small disk proper is mounted by root
alone, and containers mostly forbid a name space of one's own, where others could. It needs a C compiler, no rights, and
it is full after the same byte each time. The same runs were tried on a real tmpfs once: they say the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lakeclip.cli.app import main
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import fill_lake
from lakeclip.lake.sources.base import Samples
from tests.conftest import drawn
from tests.integration.faults import command, curves, goes_on, row, start, step_of, train_words
from tests.integration.test_exactly_once import SMALL_COMMITS

#: Of a checkpoint of the smallest model.
CHECKPOINT_BYTES = 6_016_461


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the disk that fills up is compiled by cc, on Linux")
    path = tmp_path_factory.mktemp("disk") / "full_disk.so"
    source = Path(__file__).with_name("full_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(source), "-ldl"], check=True)
    return path


def on_disk(library: Path, below: Path, size: int, *, unseen: bool = False) -> dict[str, str]:
    """The environment of a process for which the disk below a folder has room for so many bytes."""
    found = {"LD_PRELOAD": str(library), "DISK_FULL_BELOW": str(below), "DISK_FULL_AFTER": str(size)}
    return {**found, "DISK_FULL_UNSEEN": "1"} if unseen else found


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(library: Path, pairs_lake: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    run = disk / "run"
    (disk / "tmp").mkdir(parents=True)
    words = train_words(pairs_lake, disk, "run", "--val-fraction", "0.1")
    # Some are written aside in the temporary folder, which is on the same disk.
    small = on_disk(library, disk, 4 * CHECKPOINT_BYTES + CHECKPOINT_BYTES // 2)
    with start(command(words), TMPDIR=str(disk / "tmp"), **small) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    before = step_of(run)
    assert not list((disk / "tmp").glob("*.ckpt*"))
    goes_on(run, before=before)
    row(
        "The disk fills up while a checkpoint is written",
        errors,
        "the checkpoint before, whole; nothing that is half written stays",
        "`lakeclip train --resume RUN`, once there is room",
        {run: "RUN"},
    )


def test_a_disk_that_fills_up_while_the_curves_are_written(library: Path, pairs_lake: Path, tmp_path: Path) -> None:
    """A run whose checkpoints are elsewhere, behind a link, so that the curves are what finds the disk full."""
    disk, run = tmp_path / "disk", tmp_path / "disk/run"
    (tmp_path / "elsewhere").mkdir()
    run.mkdir(parents=True)
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    words = train_words(pairs_lake, tmp_path, "run", "--val-fraction", "0.1", "--track", "tensorboard")
    words[words.index("--runs") + 1] = str(disk)
    with start(command(words), **on_disk(library, disk, 40_000, unseen=True)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    before = step_of(run)
    goes_on(run, before=before)
    assert int(curves(run)[0]["step"]) == 0, "those before are kept"
    row(
        "The disk fills up while the curves are written",
        errors,
        "the last checkpoint, whole; the curves up to it",
        "`lakeclip train --resume RUN`, once there is room",
        {run: "RUN"},
    )


@pytest.mark.parametrize("unseen", [False, True])
def test_a_disk_that_fills_up_during_an_ingest(unseen: bool, library: Path, pairs_folder: Path, tmp_path: Path) -> None:
    """Commits of 40 rows, of which the disk holds some."""
    disk = tmp_path / "disk"
    source = tmp_path / "source"
    fill_lake([Samples("scenes", drawn(400), 400)], str(source))
    size = sum(len(image) for image in open_lake(source).images(range(400)))
    room = size // 2 + (0 if unseen else 4 * 2**20)
    disk.mkdir()
    words = [sys.executable, "-c", SMALL_COMMITS, "ingest", str(source), str(disk / "lake")]
    with start(words, **on_disk(library, disk, room, unseen=unseen)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    landed = open_lake(disk / "lake")
    assert 0 < len(landed) < 400
    assert len(landed) % 40 == 0
    assert not any(found.damage for found in landed.read(range(len(landed))))
    main(["ingest", str(source), str(disk / "lake")])
    whole = open_lake(disk / "lake")
    assert sorted(whole.images(range(400))) == sorted(open_lake(source).images(range(400)))
    row(
        "A quota is used up during an ingest" if unseen else "The disk fills up during an ingest",
        errors,
        "the rows of every commit before, whole and readable",
        "the same command, once there is room: every row is in the lake once",
        {disk / "lake": "LAKE", **dict.fromkeys(_files(errors), "FILE")},
    )


def _files(errors: str) -> list[str]:
    """Names that Deep Lake makes up for its files."""
    return [word for word in errors.split() if word.count("/") == 2 and not word.startswith("/")]
