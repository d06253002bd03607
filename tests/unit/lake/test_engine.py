"""Tests of the import of deeplake and of the behaviour that lakeclip depends on, in case a later version changes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lakeclip.lake import engine
from lakeclip.lake.engine import deeplake


def python(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return run.stdout


def test_deeplake_is_imported_only_when_it_is_needed() -> None:
    names = "lake.dataset lake.query lake.statistics.summary lake.engine lake.rows lake.columns"
    names += " ingestion.writer ingestion.run ingestion.target"
    code = f"""
import importlib, sys
for name in {names.split()!r}:
    importlib.import_module("lakeclip." + name)
print("deeplake" in sys.modules, "torch" in sys.modules)"""
    assert python(code).split() == ["False", "False"]


@pytest.mark.parametrize("before", [None, "somewhere"])
def test_the_import_leaves_the_environment_as_it_was(tmp_path: Path, before: str | None) -> None:
    code = """
import os
before = dict(os.environ)
from lakeclip.lake.engine import deeplake
deeplake().__version__
print(dict(os.environ) == before)"""
    assert python(code, **({} if before is None else {"TMPDIR": str(tmp_path)})).strip() == "True"


def test_errors_never_show_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVELOOP_TOKEN", "s3cret")
    message = engine.one_line(RuntimeError("GET https://x/?token=abc&a=1 with\n s3cret"))
    assert message == "GET https://x/?token=***&a=1 with ***"


@pytest.mark.parametrize("path", ["hub://genai360/laion-400M", "al://a/b"])
def test_a_hub_that_cannot_be_reached_is_explained(path: str) -> None:
    error = engine.lake_error(deeplake().HTTPRequestFailedError("Could not resolve host"), path)
    assert "app.activeloop.ai" in error.what
    assert "ACTIVELOOP_TOKEN" in error.next_step


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert engine.normalize_path("lake") == str(tmp_path / "lake")
    assert engine.normalize_path("file:///a/b") == "/a/b"
    assert engine.normalize_path("s3://bucket/x") == "s3://bucket/x"
    assert str(engine.local_folder("/a/b@tag")) == "/a/b"


def test_deep_lake_keeps_bytes_and_text_as_they_are(tmp_path: Path) -> None:
    types = deeplake().types
    dataset = deeplake().create(str(tmp_path / "a"), schema={"b": types.Bytes(), "t": types.Text(), "n": types.Int64()})
    dataset.append({"b": [b"\x00x", b""], "t": ["ü\x00😀", ""], "n": [-(2**63), 2**63 - 1]})
    dataset.commit()
    # Empty values are returned as None, which Lake converts to b"" and "".
    assert dataset["b"][[1, 0]] == [None, b"\x00x"]
    assert dataset["t"][0:2] == ["ü\x00😀", None]
    assert dataset["n"][[1, 0]].tolist() == [2**63 - 1, -(2**63)]


def test_deep_lake_fills_new_columns_with_null_and_accepts_values_for_them(tmp_path: Path) -> None:
    types = deeplake().types
    dataset = deeplake().create(str(tmp_path / "a"), schema={"n": types.Int64()})
    dataset.append({"n": [1, 2, 3]})
    dataset.add_column("t", "text")
    assert dataset["t"][0:3] == [None] * 3
    dataset["t"][0:3] = [""] * 3
    dataset.append({"n": [4], "t": ["x"]})
    dataset.remove_column("n")
    dataset.rename_column("t", "n")
    dataset.commit()
    opened = deeplake().open_read_only(str(tmp_path / "a"))
    assert opened["n"][0:4] == [None, None, None, "x"]
    assert len(opened.query("select * where n == ''")) == 3


def test_deep_lake_records_the_sizes_of_its_files(tmp_path: Path) -> None:
    """Check a private attribute, without which a full disk would not be detected."""
    dataset = deeplake().create(str(tmp_path / "a"), schema={"b": deeplake().types.Bytes()})
    dataset.append({"b": [b"x" * 1000] * 10})
    dataset.commit()
    for handle in (dataset, deeplake().open_read_only(str(tmp_path / "a"))):
        assert handle._datafiles
        assert all(os.path.getsize(tmp_path / "a" / name) == size for name, size in handle._datafiles)


def test_deep_lake_commits_by_itself_unless_rolled_back(tmp_path: Path) -> None:
    for rollback, rows in ((False, 1), (True, 0)):
        path = str(tmp_path / f"{rollback}")
        dataset = deeplake().create(path, schema={"n": deeplake().types.Int64()})
        dataset.commit()
        dataset.append({"n": [1]})
        if rollback:
            dataset.rollback()
        del dataset
        assert len(deeplake().open_read_only(path)) == rows


def test_deep_lake_opens_versions_by_their_history(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    dataset = deeplake().create(path, schema={"n": deeplake().types.Int64()})
    versions = []
    for i in range(3):
        dataset.append({"n": np.arange(10) + i})
        dataset.commit()
        versions.append(dataset.version)
    for count, version in enumerate(versions, start=1):
        opened = deeplake().open_read_only(path).history[version].open()
        assert (len(opened), opened.version, opened.id) == (10 * count, version, dataset.id)
    with pytest.raises(deeplake().VersionNotFoundError):
        dataset.history["0000000099c00000000"]
