"""Every sample becomes exactly one row, however often an ingest is killed and run again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from lakeclip.errors import LakeclipError, LakeError
from lakeclip.ingestion import writer as writer_module
from lakeclip.ingestion.run import ingest
from lakeclip.lake.dataset import open_lake
from tests.unit.lake.sample_files import picture, write_files, write_tar

#: `lakeclip ingest` with small commits, so that a few hundred rows take many.
SMALL_COMMITS = """
import sys
import lakeclip.cli.ingest, lakeclip.ingestion.run
from lakeclip.cli.app import main
from lakeclip.ingestion import writer
from lakeclip.lake import engine

writer.ROWS_PER_APPEND, writer.ROWS_PER_COMMIT = 10, 40
engine.deeplake()
print("ready", flush=True)
main(sys.argv[1:])
"""


def write_shards(folder: Path, tars: int, rows: int, *, first: int = 0) -> list[str]:
    """Write tar files with equal keys, as many tools do, and a metadata column that is widened during the ingest."""
    folder.mkdir(exist_ok=True)
    paths = []
    for tar in range(first, first + tars):
        members: list[tuple[str, bytes | str | dict[str, object]]] = []
        for row in range(rows):
            members += [(f"{row:04}.png", picture(1000 * tar + row, "PNG", size=(8, 8)))]
            members += [(f"{row:04}.txt", f"{tar} {row}"), (f"{row:04}.json", {"n": row if row < 90 else row + 0.5})]
        paths.append(str(write_tar(folder / f"{tar:03}.tar", members)))
    return paths


def count_texts(lake: Path) -> Counter[object]:
    return Counter(open_lake(lake).column("text"))


@pytest.mark.slow
def test_every_row_is_written_once_despite_twenty_kills(tmp_path: Path) -> None:
    """Kill the ingest into each lake up to four times at random moments, then let it finish."""
    sources = write_shards(tmp_path / "in", 4, 100)
    expected = Counter(f"{tar} {row}" for tar in range(4) for row in range(100))

    def start(lake: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SMALL_COMMITS, "ingest", *sources, str(lake)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    process, started = start(tmp_path / "reference"), time.monotonic()
    assert process.communicate(timeout=120)[1] == ""
    seconds = time.monotonic() - started
    assert count_texts(tmp_path / "reference") == expected
    rng = random.Random(7)
    kills = lakes = 0
    while kills < 20 and lakes < 15:
        lake = tmp_path / f"lake{lakes}"
        lakes += 1
        for _ in range(4):
            process = start(lake)
            time.sleep(seconds * 0.6 * rng.random())
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
        errors = start(lake).communicate(timeout=120)[1]
        # One of the four may have finished before it was killed.
        assert not errors or "there is already a lake" in errors, errors
        assert count_texts(lake) == expected
        assert open_lake(lake).columns["n"] == "float64"
    assert kills >= 20


def test_a_second_ingest_needs_append_and_adds_only_new_rows(tmp_path: Path) -> None:
    sources = write_shards(tmp_path / "in", 2, 5)
    ingest(sources, str(tmp_path / "lake"))
    with pytest.raises(LakeError, match="there is already a lake") as caught:
        ingest(sources, str(tmp_path / "lake"))
    assert "10 rows from 000.tar" in caught.value.found
    assert "--append" in caught.value.next_step
    new = write_shards(tmp_path / "in", 1, 5, first=2)
    result = ingest([*sources, *new], str(tmp_path / "lake"), append=True)
    assert (result.rows, result.rows_before) == (5, 10)
    again = ingest([*sources, *new], str(tmp_path / "lake"), append=True)
    assert (again.rows, again.rows_before) == (0, 15)
    assert set(count_texts(tmp_path / "lake").values()) == {1}
    assert len(count_texts(tmp_path / "lake")) == 15


def test_tars_with_the_same_name_in_different_folders(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    first = write_shards(tmp_path / "x/a", 1, 5)
    second = write_shards(tmp_path / "x/b", 1, 7)
    assert ingest(first, str(tmp_path / "lake")).rows == 5
    assert ingest([*first, *second], str(tmp_path / "lake"), append=True).rows == 7
    (tmp_path / "x/a").rename(tmp_path / "x/moved")
    assert ingest([str(tmp_path / "x/moved/000.tar"), *second], str(tmp_path / "lake"), append=True).rows == 0
    assert len(open_lake(tmp_path / "lake")) == 12


@pytest.mark.parametrize("on_change", ["update", "keep", "add"])
def test_new_files_in_a_folder_are_added_and_changed_ones_handled_as_requested(
    tmp_path: Path, on_change: Literal["update", "keep", "add"]
) -> None:
    """One image and one caption have changed, one pair is gone, and one is new."""
    folder = tmp_path / "photos"
    write_files(folder, {f"{i}.jpg": picture(i) for i in range(5)} | {f"{i}.txt": f"photo {i}" for i in range(5)})
    ingest([str(folder)], str(tmp_path / "lake"))
    write_files(folder, {"1.jpg": picture(99), "2.txt": "corrected", "9.jpg": picture(9), "9.txt": "photo 9"})
    (folder / "4.jpg").unlink()
    (folder / "4.txt").unlink()
    result = ingest([str(folder)], str(tmp_path / "lake"), append=True, on_change=on_change)
    lake = open_lake(tmp_path / "lake")
    stored = Counter(zip(lake.column("text"), lake.images(range(len(lake))), strict=True))
    before = Counter({(f"photo {i}", picture(i)): 1 for i in range(5)})
    changed = Counter([("photo 1", picture(99)), ("corrected", picture(2))])
    expected = before + Counter([("photo 9", picture(9))])
    if on_change == "update":
        expected += changed
        expected -= Counter([("photo 1", picture(1)), ("photo 2", picture(2))])
    elif on_change == "add":
        expected += changed
    assert stored == expected
    assert (result.known, result.removed, result.updated) == (2, 1, 2 if on_change == "update" else 0)
    assert result.rows == (3 if on_change == "add" else 1)
    assert result.updated_images == (1 if on_change == "update" else 0)
    reasons = [item.reason.partition(":")[0] for item in result.rejected]
    assert reasons == ["changed since it was ingested"] * (2 if on_change == "keep" else 0)
    again = ingest([str(folder)], str(tmp_path / "lake"), append=True, on_change=on_change)
    assert (again.rows, again.updated) == (0, 0)


def test_equal_keys_within_a_tar_are_separate_rows(tmp_path: Path) -> None:
    """Also if the first ingest ended between them."""
    members: list[tuple[str, bytes | str]] = []
    for name in ("a", "b", "a"):
        members += [(f"{name}.png", picture(len(members), "PNG")), (f"{name}.txt", f"text {len(members)}")]
    first = write_tar(tmp_path / "x.tar", members[:4])
    ingest([str(first)], str(tmp_path / "lake"))
    write_tar(tmp_path / "x.tar", members)
    result = ingest([str(first)], str(tmp_path / "lake"), append=True)
    # The third sample has the key of the first, which has been matched already, and another image.
    assert (result.rows, result.known) == (1, 2)
    assert len(count_texts(tmp_path / "lake")) == 3


def test_an_interrupted_ingest_is_not_resumed_with_other_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = write_shards(tmp_path / "in", 2, 30)
    monkeypatch.setattr(writer_module, "ROWS_PER_APPEND", 5)
    monkeypatch.setattr(writer_module, "ROWS_PER_COMMIT", 10)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.LakeWriter, "complete_part", interrupt)
        with pytest.raises(KeyboardInterrupt, match="run the same command to resume"):
            ingest(sources, str(tmp_path / "lake"))
    others = write_shards(tmp_path / "other", 1, 5, first=7)
    with pytest.raises(LakeError, match="was interrupted") as caught:
        ingest(others, str(tmp_path / "lake"))
    assert "000.tar" in caught.value.found
    result = ingest(sources, str(tmp_path / "lake"))
    assert result.rows_before > 0
    assert result.rows + result.rows_before == 60
    assert set(count_texts(tmp_path / "lake").values()) == {1}


def test_only_one_process_writes_to_a_lake(tmp_path: Path) -> None:
    sources = write_shards(tmp_path / "in", 1, 3)
    ingest(sources, str(tmp_path / "lake"))
    with (
        writer_module.LakeWriter(str(tmp_path / "lake"), existing=True),
        pytest.raises(LakeclipError, match="another process is writing"),
    ):
        ingest(sources, str(tmp_path / "lake"), append=True)
    assert ingest(sources, str(tmp_path / "lake"), append=True).rows == 0


@pytest.mark.parametrize("append", [False, True])
def test_an_interrupted_creation_is_restarted(tmp_path: Path, append: bool) -> None:
    from lakeclip.lake.engine import deeplake

    sources = write_shards(tmp_path / "in", 1, 3)
    (tmp_path / "log/_deeplake_log").mkdir(parents=True)
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock/lakeclip.lock").touch()
    deeplake().create(str(tmp_path / "bare")).commit()
    writer_module.LakeWriter(str(tmp_path / "rowless")).abandon()
    for name in ("log", "lock", "bare", "rowless"):
        assert ingest(sources, str(tmp_path / name), append=append).rows == 3
        assert len(open_lake(tmp_path / name)) == 3


def test_a_lake_is_not_replaced_while_it_is_written(tmp_path: Path) -> None:
    sources = write_shards(tmp_path / "in", 1, 3)
    with writer_module.LakeWriter(str(tmp_path / "lake")) as lake:
        with pytest.raises(LakeError, match="another process is writing"):
            ingest(sources, str(tmp_path / "lake"), overwrite=True)
        lake.close([])
    ingest(sources, str(tmp_path / "lake"), overwrite=True)


def test_rows_are_never_added_to_a_foreign_lake(tmp_path: Path) -> None:
    from lakeclip.lake.engine import deeplake

    deeplake().create(str(tmp_path / "foreign"), schema={"text": deeplake().types.Text()}).commit()
    with pytest.raises(LakeError, match="because lakeclip did not create it"):
        ingest(write_shards(tmp_path / "in", 1, 3), str(tmp_path / "foreign"), append=True)
