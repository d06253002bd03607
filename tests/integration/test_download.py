"""`lakeclip ingest --download`, from a list of URLs to training batches."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakeclip.cli.app import main
from lakeclip.config.schema import DataConfig
from lakeclip.errors import DataError, LakeError
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.pairs import open_pairs
from lakeclip.training.build import build_datamodule
from tests.unit.ingestion.download.hostile_server import Server, once, respond
from tests.unit.lake.sample_files import picture


def write_laion_table(path: Path, urls: list[str]) -> Path:
    rows = len(urls)
    table = {
        "URL": urls,
        "TEXT": [f"photo {i}" for i in range(rows)],
        "NSFW": ["UNLIKELY" if i % 2 == 0 else "NSFW" for i in range(rows)],
        "WIDTH": [24] * rows,
        "similarity": [i / rows for i in range(rows)],
    }
    pq.write_table(pa.table(table), path)
    return path


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def test_urls_become_images_and_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lake stores the images themselves, not only their URLs."""
    routes = {f"/{i}.jpg": respond(picture(i, size=(40, 30)), Content_Type="image/jpeg") for i in range(30)}
    routes["/page.jpg"] = respond(b"<html>not here any more</html>", Content_Type="image/jpeg")
    with Server(routes) as server:
        paths = [f"/{i}.jpg" for i in range(30)] + ["/page.jpg", "/gone.jpg"]
        table = write_laion_table(tmp_path / "laion.parquet", [server.url(path) for path in paths])
        flags = ["--allow-private", "--per-host-rate", 0, "--retries", 0]

        run("ingest", table, tmp_path / "meta.lake")
        output = capsys.readouterr().out
        assert "image address: URL; caption: TEXT; also kept: NSFW, WIDTH, similarity" in output
        assert re.search(r"not downloaded +32", output)
        assert not server.requests
        with pytest.raises(DataError, match="there are no pairs") as error:
            build_datamodule(DataConfig(lake=str(tmp_path / "meta.lake")), 32, tokenize=len)
        assert "lakeclip ingest --download" in error.value.next_step

        # Download the rows that a query selects into a new lake …
        safe = ["--query", "NSFW == 'UNLIKELY'"]
        run("ingest", "--download", *flags, *safe, tmp_path / "meta.lake", tmp_path / "safe.lake")
        assert set(server.paths) == {path for i, path in enumerate(paths) if i % 2 == 0}
        # … or all rows in place.
        run("ingest", "--download", *flags, "--report", tmp_path / "report.json", tmp_path / "meta.lake")
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["rows"], report["unusable"]) == (30, {"not an image": 1, "HTTP 404": 1})
    lake = open_lake(tmp_path / "meta.lake")
    assert len(lake) == 30
    assert lake.images(range(30)) == [picture(i, size=(40, 30)) for i in range(30)]
    assert (lake[7]["width"], lake[7]["height"], lake[7]["format"], lake[7]["NSFW"]) == (40, 30, "jpeg", "NSFW")
    assert lake.read([29])[0].damage == ""
    every = open_lake(tmp_path / "meta.lake", include_unusable=True)
    assert Counter(every.column("unusable")) == {"": 30, "not an image": 1, "HTTP 404": 1}
    safe_lake = open_pairs(DataConfig(lake=str(tmp_path / "safe.lake"), filter_nsfw=True))
    assert [row.captions for row in safe_lake.read(range(15))] == [(f"photo {2 * i}",) for i in range(15)]


def test_failed_downloads_are_retried_by_the_next_ingest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routes = {f"/{i}": respond(picture(i)) for i in range(4)}
    flags = ["--download", "--allow-private", "--per-host-rate", 0, "--retries", 0]
    with Server(routes) as server:
        table = write_laion_table(tmp_path / "list.parquet", [server.url(f"/{i}") for i in range(6)])
        run("ingest", *flags, table, tmp_path / "lake")
        assert len(open_lake(tmp_path / "lake")) == 4
        routes["/4"] = respond(picture(4))
        run("ingest", *flags, tmp_path / "lake")
        assert server.paths == {"/0": 1, "/1": 1, "/2": 1, "/3": 1, "/4": 2, "/5": 2}
        assert open_lake(tmp_path / "lake").column("similarity") == [i / 6 for i in range(5)]
        # Ingesting the same table again adds nothing and downloads nothing.
        run("ingest", *flags, "--append", table, tmp_path / "lake")
        assert sum(server.paths.values()) == 8
        routes["/5"] = respond(picture(5))
        run("ingest", *flags, tmp_path / "lake")
    capsys.readouterr()
    run("ingest", *flags, tmp_path / "lake")
    assert "rows added" in capsys.readouterr().out
    assert len(open_lake(tmp_path / "lake")) == 6


#: `lakeclip` with small commits, so that a hundred rows take many.
SMALL_COMMITS = """
import sys
from lakeclip.cli.app import main
from lakeclip.ingestion import writer

writer.ROWS_PER_APPEND, writer.ROWS_PER_COMMIT = 5, 10
main(sys.argv[1:])
"""


def rows_of(lake: Path) -> int:
    """Return the number of readable rows of a lake that another process is writing."""
    try:
        return len(open_lake(lake))
    except LakeError:
        return 0


@pytest.mark.parametrize("in_place", [False, True])
def test_a_killed_download_resumes(tmp_path: Path, in_place: bool) -> None:
    """The server holds back the last 160 images until the kill, so that it interrupts the download."""
    killed = threading.Event()
    routes = {f"/{i}": respond(picture(i)) for i in range(240)}
    routes |= {f"/{i}": once(killed.is_set, respond(picture(i))) for i in range(240, 400)}
    with Server(routes) as server:
        table = write_laion_table(tmp_path / "list.parquet", [server.url(f"/{i}") for i in range(400)])
        flags = ["--download", "--allow-private", "--per-host-rate", "0", "--per-host", "8"]
        lake = tmp_path / "lake"
        if in_place:
            run("ingest", table, lake)
        words = ["ingest", *flags, *([] if in_place else [str(table)]), str(lake)]
        process = subprocess.Popen([sys.executable, "-c", SMALL_COMMITS, *words], stdout=subprocess.DEVNULL)
        while len(server.requests) < 245 or not rows_of(lake):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        num_rows = len(open_lake(lake))
        assert 0 < num_rows <= 240
        num_requests = len(server.requests)
        run(*words)
        assert len(server.requests) - num_requests == 400 - num_rows, (
            "images that are in the lake are not downloaded again"
        )
    found = open_lake(lake)
    assert Counter(found.column("text")) == Counter(f"photo {i}" for i in range(400))
    texts = found.column("text")
    assert found.images(range(400)) == [picture(int(str(text).removeprefix("photo "))) for text in texts]


def test_private_addresses_are_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refuse 2,000 addresses of two hosts without the pause between requests, and say which flag allows them."""
    with Server({"*": respond(picture())}) as server:
        urls = [server.url(f"/{i}", "127.0.0.1" if i % 2 else "localhost") for i in range(2000)]
        table = write_laion_table(tmp_path / "list.parquet", urls)
        started = time.monotonic()
        with pytest.raises(SystemExit) as end:
            run("ingest", "--download", "--report", tmp_path / "report.json", table, tmp_path / "lake")
        assert time.monotonic() - started < 30, "the courtesy rate would be 10 per second and host"
        assert end.value.code == 1
        assert not server.requests
        output, errors = capsys.readouterr()
        assert re.search(r"refused +2,000 +addresses of this machine .* --allow-private allows them", output)
        assert errors.startswith("error: none of 2,000 images could be downloaded\n  found:   2,000 × refused")
        assert f"next:    lakeclip ingest --download --allow-private {tmp_path / 'lake'}" in errors
        assert "lakeclip ingest --download " + str(tmp_path) not in output + errors, "this command would fail again"
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["downloaded"], report["failed_downloads"], report["unusable"]) == (0, 2000, {"refused": 2000})
        # The command that is suggested works.
        run("ingest", "--download", "--allow-private", "--per-host-rate", 0, tmp_path / "lake")
        assert len(server.requests) == 2000


def test_the_exit_code_says_whether_anything_was_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--download", "--allow-private", "--per-host-rate", 0, "--retries", 0]
    with Server({"/0": respond(picture()), "/2": respond(b"", "503 Busy")}) as server:
        urls = [server.url(f"/{i}") for i in range(3)]
        run("ingest", *flags, write_laion_table(tmp_path / "some.parquet", urls), tmp_path / "some")
        output = capsys.readouterr().out
        assert re.search(r"downloaded +1 +of 3 images", output)
        assert f"try 1 again later: lakeclip ingest --download {tmp_path / 'some'}" in output
        with pytest.raises(SystemExit) as end:
            run("ingest", *flags, tmp_path / "some")
        assert end.value.code == 1, "the busy server may answer later"
        run("ingest", *flags, write_laion_table(tmp_path / "dead.parquet", [urls[0], urls[1]]), tmp_path / "dead")
        capsys.readouterr()
        run("ingest", *flags, tmp_path / "dead")  # only a dead link is left: no error
        assert re.search(r"HTTP 404 +1", capsys.readouterr().out)
        with pytest.raises(SystemExit) as end:
            run("ingest", *flags, write_laion_table(tmp_path / "none.parquet", urls[1:2]), tmp_path / "none")
        assert end.value.code == 1
        output, errors = capsys.readouterr()
        assert "found:   1 × HTTP 404" in errors
        assert f"next:    check the addresses: lakeclip inspect {tmp_path / 'none'}" in errors
        assert "lakeclip ingest" not in output + errors, "another attempt would fail as well"
    table = write_laion_table(tmp_path / "odd.parquet", ["ftp://host.invalid/1.jpg", "//host.invalid:99999/1.jpg"])
    with pytest.raises(SystemExit) as end:
        run("ingest", "--download", table, tmp_path / "odd")
    assert end.value.code == 1
    assert "found:   2 × bad address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per-host", "2", "src", "lake"], "download options have no effect without --download"),
        (["--download", "--concurrency", "0", "src", "lake"], "concurrency cannot be 0"),
        (["--download", "nowhere"], "there is no Deep Lake dataset"),
        (["--overwrite", "--append", "{table}", "lake"], "cannot both replace the lake"),
        (["--query", "n > 1", "{table}", "lake"], "a query selects rows of a lake"),
        (["--image-column", "TEX", "{table}", "lake"], "does not exist"),
    ],
)
def test_invalid_flags_are_errors(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    table = write_laion_table(tmp_path / "list.parquet", ["http://host.invalid/1.jpg"])
    with pytest.raises(SystemExit) as end:
        run("ingest", *(argument.format(table=table) for argument in arguments))
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lake").exists()
