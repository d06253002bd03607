"""Killed at any moment and run again, an ingest leaves every row in the lake once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lakeclip.errors import LakeclipError, LakeError
from lakeclip.lake import write
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.ingest import ingest
from tests.unit.lake.pairs import picture, write_files, write_tar

#: `lakeclip ingest` with commits so small that a few hundred rows take many of them.
SMALL_COMMITS = """
import sys
import lakeclip.cli.ingest, lakeclip.lake.ingest
from lakeclip.cli.app import main
from lakeclip.lake import engine, write

write.ROWS_PER_APPEND, write.ROWS_PER_COMMIT = 10, 40
engine.deeplake()
print("ready", flush=True)
main(sys.argv[1:])
"""


def shards(folder: Path, tars: int, rows: int, *, first: int = 0) -> list[str]:
    """Tars whose keys are the same in each, as many tools write them, with a metadata column that widens on the way."""
    folder.mkdir(exist_ok=True)
    paths = []
    for tar in range(first, first + tars):
        members: list[tuple[str, bytes | str | dict[str, object]]] = []
        for row in range(rows):
            members += [(f"{row:04}.png", picture(1000 * tar + row, "PNG", size=(8, 8)))]
            members += [(f"{row:04}.txt", f"{tar} {row}"), (f"{row:04}.json", {"n": row if row < 90 else row + 0.5})]
        paths.append(str(write_tar(folder / f"{tar:03}.tar", members)))
    return paths


def texts(lake: Path) -> Counter[object]:
    return Counter(open_lake(lake).column("text"))


@pytest.mark.slow
def test_twenty_kills_and_every_row_is_there_once(tmp_path: Path) -> None:
    """Lakes that are killed up to four times between the start of the work and its end, then left to finish."""
    sources = shards(tmp_path / "in", 4, 100)
    whole = Counter(f"{tar} {row}" for tar in range(4) for row in range(100))

    def start(lake: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SMALL_COMMITS, "ingest", *sources, str(lake)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    process, began = start(tmp_path / "unhurt"), time.monotonic()
    assert process.communicate(timeout=120)[1] == ""
    seconds = time.monotonic() - began
    assert texts(tmp_path / "unhurt") == whole
    moments = random.Random(7)
    cut = lakes = 0
    while cut < 20 and lakes < 15:
        lake = tmp_path / f"lake{lakes}"
        lakes += 1
        for _ in range(4):
            process = start(lake)
            time.sleep(seconds * 0.6 * moments.random())
            process.send_signal(signal.SIGKILL)
            process.communicate()
            cut += process.returncode == -signal.SIGKILL
        complaint = start(lake).communicate(timeout=120)[1]
        # One of the four may have come to its end before it was hit.
        assert not complaint or "there is a lake already" in complaint, complaint
        assert texts(lake) == whole
        assert open_lake(lake).columns["n"] == "float64"
    assert cut >= 20


def test_a_second_run_is_refused_or_adds_what_is_new(tmp_path: Path) -> None:
    sources = shards(tmp_path / "in", 2, 5)
    ingest(sources, str(tmp_path / "lake"))
    with pytest.raises(LakeError, match="there is a lake already") as caught:
        ingest(sources, str(tmp_path / "lake"))
    assert "10 rows from 000.tar" in caught.value.found
    assert "--append" in caught.value.next_step
    more = shards(tmp_path / "in", 1, 5, first=2)
    report = ingest([*sources, *more], str(tmp_path / "lake"), append=True)
    assert (report.rows, report.rows_before) == (5, 10)
    again = ingest([*sources, *more], str(tmp_path / "lake"), append=True)
    assert (again.rows, again.rows_before) == (0, 15)
    assert set(texts(tmp_path / "lake").values()) == {1}
    assert len(texts(tmp_path / "lake")) == 15


def test_tars_of_one_name_in_several_folders(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    first = shards(tmp_path / "x/a", 1, 5)
    second = shards(tmp_path / "x/b", 1, 7)
    assert ingest(first, str(tmp_path / "lake")).rows == 5
    assert ingest([*first, *second], str(tmp_path / "lake"), append=True).rows == 7
    (tmp_path / "x/a").rename(tmp_path / "x/moved")
    assert ingest([str(tmp_path / "x/moved/000.tar"), *second], str(tmp_path / "lake"), append=True).rows == 0
    assert len(open_lake(tmp_path / "lake")) == 12


def test_new_files_in_a_folder_are_added_and_changed_ones_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    write_files(folder, {f"{i}.jpg": picture(i) for i in range(4)} | {f"{i}.txt": f"photo {i}" for i in range(4)})
    ingest([str(folder)], str(tmp_path / "lake"))
    write_files(folder, {"1.jpg": picture(99), "9.jpg": picture(9), "9.txt": "photo 9"})
    report = ingest([str(folder)], str(tmp_path / "lake"), append=True)
    assert (report.rows, report.known) == (1, 3)
    assert [item.reason.partition(":")[0] for item in report.rejected] == ["changed since it was ingested"]
    assert texts(tmp_path / "lake") == Counter(["photo 0", "photo 1", "photo 2", "photo 3", "photo 9"])


def test_equal_names_within_a_tar_are_rows_of_their_own(tmp_path: Path) -> None:
    """… also where a first run ended between them."""
    members: list[tuple[str, bytes | str]] = []
    for name in ("a", "b", "a"):
        members += [(f"{name}.png", picture(len(members), "PNG")), (f"{name}.txt", f"text {len(members)}")]
    first = write_tar(tmp_path / "x.tar", members[:4])
    ingest([str(first)], str(tmp_path / "lake"))
    write_tar(tmp_path / "x.tar", members)
    report = ingest([str(first)], str(tmp_path / "lake"), append=True)
    # The third has the name of the first, which is found for it, and another image.
    assert (report.rows, report.known) == (1, 2)
    assert len(texts(tmp_path / "lake")) == 3


def test_an_ingest_that_was_cut_short_is_not_mixed_up_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = shards(tmp_path / "in", 2, 30)
    monkeypatch.setattr(write, "ROWS_PER_APPEND", 5)
    monkeypatch.setattr(write, "ROWS_PER_COMMIT", 10)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write.LakeWriter, "end_part", interrupt)
        with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
            ingest(sources, str(tmp_path / "lake"))
    others = shards(tmp_path / "other", 1, 5, first=7)
    with pytest.raises(LakeError, match="was cut short") as caught:
        ingest(others, str(tmp_path / "lake"))
    assert "000.tar" in caught.value.found
    report = ingest(sources, str(tmp_path / "lake"))
    assert report.rows_before > 0
    assert report.rows + report.rows_before == 60
    assert set(texts(tmp_path / "lake").values()) == {1}


def test_two_processes_never_fill_one_lake(tmp_path: Path) -> None:
    sources = shards(tmp_path / "in", 1, 3)
    ingest(sources, str(tmp_path / "lake"))
    with (
        write.LakeWriter(str(tmp_path / "lake"), existing=True),
        pytest.raises(LakeclipError, match="another process is writing"),
    ):
        ingest(sources, str(tmp_path / "lake"), append=True)
    assert ingest(sources, str(tmp_path / "lake"), append=True).rows == 0


def test_what_is_left_of_a_making_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    from lakeclip.lake.engine import deeplake

    sources = shards(tmp_path / "in", 1, 3)
    (tmp_path / "log/_deeplake_log").mkdir(parents=True)
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock/lakeclip.lock").touch()
    deeplake().create(str(tmp_path / "bare")).commit()
    write.LakeWriter(str(tmp_path / "rowless")).abandon()
    for name in ("log", "lock", "bare", "rowless"):
        assert ingest(sources, str(tmp_path / name)).rows == 3
        assert len(open_lake(tmp_path / name)) == 3


def test_a_lake_that_is_being_written_is_not_replaced(tmp_path: Path) -> None:
    sources = shards(tmp_path / "in", 1, 3)
    with write.LakeWriter(str(tmp_path / "lake")) as writer:
        with pytest.raises(LakeError, match="another process is writing"):
            ingest(sources, str(tmp_path / "lake"), overwrite=True)
        writer.close([])
    ingest(sources, str(tmp_path / "lake"), overwrite=True)


def test_a_lake_that_is_not_ours_is_not_added_to(tmp_path: Path) -> None:
    from lakeclip.lake.engine import deeplake

    deeplake().create(str(tmp_path / "theirs"), schema={"text": deeplake().types.Text()}).commit()
    with pytest.raises(LakeError, match="was not made by lakeclip"):
        ingest(shards(tmp_path / "in", 1, 3), str(tmp_path / "theirs"), append=True)
