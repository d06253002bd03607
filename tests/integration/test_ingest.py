"""`lakeclip ingest` and `lakeclip inspect` on the command line, and `lakeclip.ingest` in Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lakeclip
from lakeclip.cli.app import main
from lakeclip.errors import ConfigError, LakeError, SourceError
from lakeclip.lake.dataset import open_lake
from tests.unit.lake.sample_files import picture, write_files, write_tar


def run_failing(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run a command that must end with exit code 2, and return its message."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in argv])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    main([str(argument) for argument in argv])
    output = capsys.readouterr()
    assert output.err == "", "the progress bar is only for terminals"
    return output.out


def write_problem_folder(folder: Path) -> tuple[dict[str, bytes], set[str]]:
    """Write a folder with every kind of problem.

    Returns:
        Key → image of the expected rows, and the files that must be reported.
    """
    good = {
        "photos/one.JPG": picture(1),
        "cmyk.jpg": picture(2, "JPEG", "CMYK"),
        "deep.png": picture(3, "PNG", "I;16"),
        "palette.gif": picture(4, "GIF", "P"),
        "träume.webp": picture(5, "WEBP"),
        "train/same.jpg": picture(6),
        "val/same.jpg": picture(7),
    }
    bad = {
        "cut.jpg": picture(8, size=(99, 99))[:-400],
        "empty.png": b"",
        "page.jpg": b"<html>404</html>",
        "nocaption.jpg": picture(9),
        "blank.jpg": picture(10),
        "a/twice.jpg": picture(11),
        "b/twice.jpg": picture(12),
    }
    captions = {"texts/one.txt": "eins\n\nzwei\n", "train/same.txt": "train", "val/same.txt": "val", "twice.txt": "?"}
    captions |= {
        f"{stem}.txt": f"a {stem}" for stem in ("cmyk", "deep", "palette", "träume", "cut", "empty", "page", "lone")
    }
    write_files(folder, {**good, **bad, **captions, "blank.txt": "\n\n", ".hidden.jpg": b"", "notes.md": "x"})
    return good, {*bad, "lone.txt", "twice.txt"}


def test_every_file_becomes_a_row_or_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Image modes, upper-case suffixes, and equal names in several folders."""
    good, bad = write_problem_folder(tmp_path / "in")
    output = run(capsys, "ingest", tmp_path / "in", tmp_path / "lake", "--report", tmp_path / "report.json")
    lake = open_lake(tmp_path / "lake")
    assert dict(zip(lake.column("key"), (row.image for row in lake.read(range(len(lake)))), strict=True)) == good
    captions = dict(zip(lake.column("key"), lake.captions(range(len(lake))), strict=True))
    assert captions["photos/one.JPG"] == ("eins", "zwei")
    assert (captions["train/same.jpg"], captions["val/same.jpg"]) == (("train",), ("val",))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {item["key"].rpartition(": ")[2] for item in report["rejected"]} == bad
    assert all(item["reason"] for item in report["rejected"])
    assert {item["key"] for item in report["collisions"]} == {"same", "twice"}
    assert (report["rows"], report["ignored"]) == (len(good), {".md": 1})
    for text in (
        "rows added",
        "truncated image",
        "not an image",
        "no caption file",
        "twice",
        "rows/s",
        "lakeclip inspect",
    ):
        assert text in output


def test_tars_of_several_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in range(3):
        write_tar(
            tmp_path / f"t-{shard:04d}.tar",
            [
                member
                for i in range(5)
                for member in (
                    (f"{i}.jpg", picture(10 * shard + i)),
                    (f"{i}.txt", f"caption {shard} {i}"),
                    (
                        f"{i}.json",
                        {"label": "cat" if i % 2 else "dog", "score": i / 2, **({"late": shard} if shard else {})},
                    ),
                )
            ],
        )
    write_tar(tmp_path / "labelled.tar", [("0.jpg", picture(50)), ("0.json", {"label": "frog"})])
    output = run(
        capsys,
        "ingest",
        tmp_path / "t-{0000..0001}.tar",
        tmp_path / "t-*2.tar",
        tmp_path / "labelled.tar",
        tmp_path / "lake",
    )
    assert "without caption" in output
    lake = open_lake(tmp_path / "lake")
    assert len(lake) == 16
    assert {name: lake.columns[name] for name in ("label", "score", "late")} == {
        "label": "text",
        "score": "float64",
        "late": "int64",
    }
    assert lake.column("late") == [None] * 5 + [1] * 5 + [2] * 5 + [None]
    assert lake.column("label")[-1] == "frog"
    assert lake.read([7, 15])[0].captions == ("caption 1 2",)
    assert lake.read([15])[0].captions == ()
    assert len(open_lake(tmp_path / "lake", "label == 'cat' and late >= 1")) == 4


def test_a_folder_of_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/1.tar", [("b.jpg", picture(1)), ("b.txt", "b")])
    write_tar(tmp_path / "shards/0.tar", [("a.jpg", picture(0)), ("a.txt", "a")])
    (tmp_path / "shards/stats.json").touch()
    run(capsys, "ingest", tmp_path / "shards", tmp_path / "lake")
    assert open_lake(tmp_path / "lake").column("key") == ["a", "b"]


def test_a_broken_tar_does_not_affect_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_tar(
            tmp_path / f"{name}.tar",
            [(f"{name}{i}.{end}", picture(i) if end == "jpg" else "x") for i in range(9) for end in ("jpg", "txt")],
        )
    os.truncate(tmp_path / "a.tar", 5_000)
    output = run(capsys, "ingest", tmp_path / "a.tar", tmp_path / "b.tar", tmp_path / "lake")
    assert "broken archive" in output
    assert 9 < len(open_lake(tmp_path / "lake")) < 18


def test_many_consecutive_unusable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unusable files are skipped in a loop, not by recursion."""
    members = [(f"{i:04d}.{end}", "x") for i in range(1_500) for end in ("jpg", "txt")]
    write_tar(tmp_path / "a.tar", [*members, ("last.jpg", picture()), ("last.txt", "a cat")])
    output = run(capsys, "ingest", tmp_path / "a.tar", tmp_path / "lake")
    assert "1,500" in output
    assert open_lake(tmp_path / "lake").column("key") == ["last"]


def test_invalid_ingests_are_errors_and_create_no_lake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = tmp_path / "lake"
    (tmp_path / "empty").mkdir()
    write_files(tmp_path / "texts", {"a.txt": "x"})
    write_files(tmp_path / "images", {"a.jpg": picture()})
    write_files(tmp_path / "broken", {"a.jpg": b"x", "a.txt": "x"})
    (tmp_path / "zero.tar").touch()
    (tmp_path / "a.zip").touch()
    for source, message in {
        "empty": "is empty",
        "texts": "contains no images",
        "images": "contains no captions",
        "broken": "1 × not an image",
        "zero.tar": "broken archive",
        "a.zip": "a file of an unknown format",
        "nowhere": "nothing at this path",
        "nowhere.tar": "there is no tar file",
        "no*.tar": "no file matches",
    }.items():
        assert message in run_failing(capsys, "ingest", tmp_path / source, lake), source
        assert not lake.exists(), source
    assert "cannot read https://b/x" in run_failing(capsys, "ingest", "https://b/x", lake)
    assert "at least one source" in run_failing(capsys, "ingest", tmp_path / "empty")
    write_files(tmp_path / "good", {"a.jpg": picture(), "a.txt": "x"})
    assert "cannot write" in run_failing(
        capsys, "ingest", tmp_path / "good", lake, "--report", tmp_path / "no/report.json"
    )
    assert "is not a lake" in run_failing(capsys, "ingest", tmp_path / "good", tmp_path / "images", "--overwrite")
    assert "cannot create a lake" in run_failing(capsys, "ingest", tmp_path / "good", tmp_path / "a.zip/lake")
    assert not lake.exists()


def test_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path / "first", {"a.jpg": picture(1), "a.txt": "x"})
    write_files(tmp_path / "second", {"b.jpg": picture(2), "b.txt": "y"})
    write_files(tmp_path / "bad", {"c.jpg": b"", "c.txt": "y"})
    run(capsys, "ingest", tmp_path / "first", tmp_path / "lake")
    assert "--overwrite" in run_failing(capsys, "ingest", tmp_path / "second", tmp_path / "lake")
    # A source without a usable sample leaves the lake unchanged.
    run_failing(capsys, "ingest", tmp_path / "bad", tmp_path / "lake", "--overwrite")
    assert open_lake(tmp_path / "lake").column("key") == ["a.jpg"]
    run(capsys, "ingest", tmp_path / "second", tmp_path / "lake", "--overwrite")
    assert open_lake(tmp_path / "lake").column("key") == ["b.jpg"]


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_problem_folder(tmp_path / "in")
    run(capsys, "ingest", tmp_path / "in", tmp_path / "lake")
    output = run(
        capsys, "inspect", tmp_path / "lake", "--query", "format == 'jpeg'", "--json", tmp_path / "figures.json"
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["num_rows"], figures["total_rows"]) == (4, 7)
    assert figures["columns"]["image"] == "bytes"
    assert figures["formats"] == {"jpeg": 4}
    for text in ("4 of 7", "image (bytes)", "captions", "eins"):
        assert text in output
    assert "there is no Deep Lake dataset" in run_failing(capsys, "inspect", tmp_path / "nowhere")
    assert "width (int32)" in run_failing(capsys, "inspect", tmp_path / "lake", "--query", "wdth > 3")
    assert "does not exist" in run_failing(capsys, "inspect", tmp_path / "lake", "--image-column", "img")
    assert "cannot write" in run_failing(capsys, "inspect", tmp_path / "lake", "--json", tmp_path / "no/f.json")


def test_ingest_in_python(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path / "in", {"a.jpg": picture(1), "a.txt": "x", "b.jpg": b"", "b.txt": "y", "notes.md": "z"})
    result = lakeclip.ingest(tmp_path / "in", tmp_path / "lake", progress=True)
    assert isinstance(result, lakeclip.IngestResult)
    assert (result.rows, result.rows_before, result.known) == (1, 0, 0)
    assert (dict(result.reasons), dict(result.ignored)) == ({"empty file": 1}, {".md": 1})
    assert result.to_dict()["lake"] == result.lake == str(tmp_path / "lake")
    assert "ingest" in capfd.readouterr().err, "the progress bar was requested"
    write_files(tmp_path / "in", {"b.jpg": picture(2)})
    result = lakeclip.ingest([str(tmp_path / "in")], str(tmp_path / "lake"), append=True)
    assert (result.rows, result.rows_before, result.known) == (1, 1, 1)
    assert capfd.readouterr().err == "", "there is no progress bar without a terminal"
    with pytest.raises(LakeError, match="there is already a lake"):
        lakeclip.ingest(tmp_path / "in", tmp_path / "lake")
    with pytest.raises(SourceError, match="no source was given"):
        lakeclip.ingest([], tmp_path / "new")
    with pytest.raises(ConfigError, match="need a source"):
        lakeclip.ingest([], tmp_path / "lake", overwrite=True, download=True)


SLOW_INGEST = """
import sys
from lakeclip.ingestion import writer
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Sample, Samples
from tests.unit.lake.sample_files import picture

writer.ROWS_PER_APPEND, writer.ROWS_PER_COMMIT = 20, 100
image = picture()

def endless_samples():
    for i in range(10**9):
        if i == 500:
            print("going", flush=True)
        yield Sample(f"{i}", image, (f"caption {i}",), {"n": i})

try:
    fill_lake([Samples("x", endless_samples(), 10**9)], sys.argv[1])
except KeyboardInterrupt as interrupt:
    print(interrupt)
"""


@pytest.mark.parametrize("stop_signal", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_ingest_leaves_its_last_commit(tmp_path: Path, stop_signal: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_INGEST, str(tmp_path / "lake")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    time.sleep(0.3)
    process.send_signal(stop_signal)
    output = process.communicate(timeout=60)[0]
    lake = open_lake(tmp_path / "lake")
    assert len(lake) % 100 == 0
    assert len(lake) >= 200
    assert lake.column("n") == list(range(len(lake)))
    some = np.linspace(0, len(lake) - 1, 50).astype(int)
    assert [row.captions for row in lake.read(some)] == [(f"caption {i}",) for i in some]
    if stop_signal is signal.SIGINT:
        assert f"holds {len(lake):,} rows; run the same command to resume" in output
