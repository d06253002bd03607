"""`lakeclip ingest --download`, from a list of addresses to a lake to train on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lakeclip.cli.app import main
from lakeclip.config.schema import DataConfig
from lakeclip.errors import DataError
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.pairs import open_pairs
from lakeclip.training.parts import make_datamodule
from tests.unit.lake.download.hostile import Server, respond
from tests.unit.lake.pairs import picture


def laion(path: Path, urls: list[str]) -> Path:
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


def run(*words: object) -> None:
    main([str(word) for word in words])


def test_from_a_list_of_addresses_to_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Defect 27: only addresses were stored, and materialising returned on its first line."""
    routes = {f"/{i}.jpg": respond(picture(i, size=(40, 30)), Content_Type="image/jpeg") for i in range(30)}
    routes["/page.jpg"] = respond(b"<html>not here any more</html>", Content_Type="image/jpeg")
    with Server(routes) as server:
        paths = [f"/{i}.jpg" for i in range(30)] + ["/page.jpg", "/gone.jpg"]
        table = laion(tmp_path / "laion.parquet", [server.url(path) for path in paths])
        flags = ["--allow-private", "--per-host-rate", 0, "--retries", 0]

        run("ingest", table, tmp_path / "meta.lake")
        said = capsys.readouterr().out
        assert "image address: URL; caption: TEXT; also kept: NSFW, WIDTH, similarity" in said
        assert re.search(r"not downloaded +32", said)
        assert not server.requests
        with pytest.raises(DataError, match="there are no pairs") as error:
            make_datamodule(DataConfig(lake=str(tmp_path / "meta.lake")), 32, tokenize=len)
        assert "lakeclip ingest --download" in error.value.next_step

        # Only what a query chooses, into a lake of its own …
        safe = ["--query", "NSFW == 'UNLIKELY'"]
        run("ingest", "--download", *flags, *safe, tmp_path / "meta.lake", tmp_path / "safe.lake")
        assert set(server.paths) == {path for i, path in enumerate(paths) if i % 2 == 0}
        # … or all of it, where it is.
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


def test_failures_are_tried_again_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routes = {f"/{i}": respond(picture(i)) for i in range(4)}
    flags = ["--download", "--allow-private", "--per-host-rate", 0, "--retries", 0]
    with Server(routes) as server:
        table = laion(tmp_path / "list.parquet", [server.url(f"/{i}") for i in range(6)])
        run("ingest", *flags, table, tmp_path / "lake")
        assert len(open_lake(tmp_path / "lake")) == 4
        routes["/4"] = respond(picture(4))
        run("ingest", *flags, tmp_path / "lake")
        assert server.paths == {"/0": 1, "/1": 1, "/2": 1, "/3": 1, "/4": 2, "/5": 2}
        assert open_lake(tmp_path / "lake").column("similarity") == [i / 6 for i in range(5)]
        # The same list again: nothing is new, nothing is asked for.
        run("ingest", *flags, "--append", table, tmp_path / "lake")
        assert sum(server.paths.values()) == 8
        routes["/5"] = respond(picture(5))
        run("ingest", *flags, tmp_path / "lake")
    capsys.readouterr()
    run("ingest", *flags, tmp_path / "lake")
    assert "rows in" in capsys.readouterr().out
    assert len(open_lake(tmp_path / "lake")) == 6


#: `lakeclip` with commits so small that a hundred rows take many of them.
SMALL_COMMITS = """
import sys
from lakeclip.cli.app import main
from lakeclip.lake import write

write.ROWS_PER_APPEND, write.ROWS_PER_COMMIT = 5, 10
main(sys.argv[1:])
"""


@pytest.mark.parametrize("in_place", [False, True])
def test_a_download_that_is_killed_goes_on(tmp_path: Path, in_place: bool) -> None:
    routes = {f"/{i}": respond(picture(i), delay=0.02) for i in range(400)}
    with Server(routes) as server:
        table = laion(tmp_path / "list.parquet", [server.url(f"/{i}") for i in range(400)])
        flags = ["--download", "--allow-private", "--per-host-rate", "0", "--per-host", "8"]
        lake = tmp_path / "lake"
        if in_place:
            run("ingest", table, lake)
        words = ["ingest", *flags, *([] if in_place else [str(table)]), str(lake)]
        process = subprocess.Popen([sys.executable, "-c", SMALL_COMMITS, *words], stdout=subprocess.DEVNULL)
        while len(server.requests) < 250:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        landed = len(open_lake(lake))
        assert 0 < landed < 250
        asked = len(server.requests)
        run(*words)
        assert len(server.requests) - asked == 400 - landed, "what has landed is not asked for again"
    found = open_lake(lake)
    assert Counter(found.column("text")) == Counter(f"photo {i}" for i in range(400))
    texts = found.column("text")
    assert found.images(range(400)) == [picture(int(str(text).removeprefix("photo "))) for text in texts]


def test_private_addresses_are_refused_unless_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server({"/0": respond(picture())}) as server:
        table = laion(tmp_path / "list.parquet", [server.url("/0")])
        run("ingest", "--download", table, tmp_path / "lake")
        assert not server.requests
    assert re.search(r"refused +1", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--per-host", "2", "src", "lake"], "nothing is downloaded"),
        (["--download", "--concurrency", "0", "src", "lake"], "concurrency cannot be 0"),
        (["--download", "nowhere"], "there is no Deep Lake dataset"),
        (["--overwrite", "--append", "{table}", "lake"], "cannot be both replaced and added to"),
        (["--query", "n > 1", "{table}", "lake"], "a query chooses rows of a lake"),
        (["--image-column", "TEX", "{table}", "lake"], "does not exist"),
    ],
)
def test_flags_that_cannot_work(
    tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = laion(tmp_path / "list.parquet", ["http://host.invalid/1.jpg"])
    with pytest.raises(SystemExit) as end:
        run("ingest", *(word.format(table=table) for word in words))
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "lake").exists()
