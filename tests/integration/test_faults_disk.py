"""A disk that fills up during a run and during an ingest.

The disk is simulated by full_disk.c, a preloaded library that returns ENOSPC: only root can mount a small disk, and
most containers do not allow user namespaces. It needs a C compiler but no privileges, and the disk is full after the
same byte each time. The same runs were tried once on a real tmpfs, with the same messages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lakeclip.cli.app import main
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.lake.dataset import open_lake
from tests.conftest import scene_samples
from tests.integration.faults import check_resume, check_row, command, curves, last_step, start, train_args
from tests.integration.test_exactly_once import SMALL_COMMITS

#: Size of a checkpoint of the smallest model.
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


def full_disk_environment(library: Path, below: Path, size: int, *, unseen: bool = False) -> dict[str, str]:
    """Return the environment of a process for which the disk below a folder has `size` bytes of space."""
    found = {"LD_PRELOAD": str(library), "DISK_FULL_BELOW": str(below), "DISK_FULL_AFTER": str(size)}
    return {**found, "DISK_FULL_UNSEEN": "1"} if unseen else found


@pytest.mark.slow
def test_the_disk_fills_up_during_a_checkpoint(library: Path, pairs_lake: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    run = disk / "run"
    (disk / "tmp").mkdir(parents=True)
    args = train_args(pairs_lake, disk, "run", "--val-fraction", "0.1")
    # Some files are written to the temporary folder first, which is on the same disk.
    small = full_disk_environment(library, disk, 4 * CHECKPOINT_BYTES + CHECKPOINT_BYTES // 2)
    with start(command(args), TMPDIR=str(disk / "tmp"), **small) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    before = last_step(run)
    assert not list((disk / "tmp").glob("*.ckpt*"))
    check_resume(run, before=before)
    check_row(
        "The disk fills up while a checkpoint is written",
        errors,
        "the previous checkpoint, complete; no partial file is left",
        "`lakeclip train --resume RUN`, after freeing space",
        {run: "RUN"},
    )


@pytest.mark.slow
def test_the_disk_fills_up_while_curves_are_written(library: Path, pairs_lake: Path, tmp_path: Path) -> None:
    """The checkpoints are on another disk, behind a symbolic link, so that writing the curves fails."""
    disk, run = tmp_path / "disk", tmp_path / "disk/run"
    (tmp_path / "elsewhere").mkdir()
    run.mkdir(parents=True)
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    args = train_args(pairs_lake, tmp_path, "run", "--val-fraction", "0.1", "--track", "tensorboard")
    args[args.index("--runs") + 1] = str(disk)
    with start(command(args), **full_disk_environment(library, disk, 40_000, unseen=True)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.startswith("error: ")
    before = last_step(run)
    check_resume(run, before=before)
    assert int(curves(run)[0]["step"]) == 0, "those before are kept"
    check_row(
        "The disk fills up while the curves are written",
        errors,
        "the last checkpoint, complete, and the curves up to it",
        "`lakeclip train --resume RUN`, after freeing space",
        {run: "RUN"},
    )


@pytest.mark.parametrize("unseen", [False, True])
def test_the_disk_fills_up_during_an_ingest(unseen: bool, library: Path, pairs_folder: Path, tmp_path: Path) -> None:
    """Commits of 40 rows, of which only some fit on the disk."""
    disk = tmp_path / "disk"
    source = tmp_path / "source"
    fill_lake([Samples("scenes", scene_samples(400), 400)], str(source))
    size = sum(len(image) for image in open_lake(source).images(range(400)))
    room = size // 2 + (0 if unseen else 4 * 2**20)
    disk.mkdir()
    args = [sys.executable, "-c", SMALL_COMMITS, "ingest", str(source), str(disk / "lake")]
    with start(args, **full_disk_environment(library, disk, room, unseen=unseen)) as process:
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
    check_row(
        "A quota is used up during an ingest" if unseen else "The disk fills up during an ingest",
        errors,
        "all rows of earlier commits, complete and readable",
        "the same command, after freeing space: every row is in the lake once",
        {disk / "lake": "LAKE", **dict.fromkeys(_files(errors), "FILE")},
    )


def _files(errors: str) -> list[str]:
    """Return the words that are names of Deep Lake's files."""
    return [word for word in errors.split() if word.count("/") == 2 and not word.startswith("/")]
