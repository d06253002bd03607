"""The log of Deep Lake, whose format is not documented: these tests fail if a later version changes it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.lake import commit_log, engine


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """Make a dataset of 70 versions, after which Deep Lake has summed up earlier ones, with 66 rows."""
    path = str(tmp_path / "lake")
    dataset = engine.deeplake().create(path, schema={"name": "text", "score": "float64"})
    for number in range(66):
        dataset.append({"name": ["x"], "score": [float(number)]})
        dataset.commit(f"commit {number}")
    return path


def spoil(path: str, value: float = math.inf) -> None:
    """Commit a number that Deep Lake cannot read."""
    dataset = engine.deeplake().open(path)
    dataset.append({"name": ["bad"] * 3, "score": [value, 5.0, value]})
    with pytest.raises(RuntimeError, match="Failed to parse JSON"):
        dataset.commit("spoilt")
    dataset.rollback()


def num_rows(path: str) -> int:
    return len(engine.open_dataset(path))


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1.7e308])
def test_a_number_makes_a_dataset_unreadable_and_removing_its_version_repairs_it(lake: str, value: float) -> None:
    version = commit_log.version_number(engine.open_dataset(lake).version)
    spoil(lake, value)
    with pytest.raises(RuntimeError, match="Failed to parse JSON"):
        engine.deeplake().open_read_only(lake)
    assert commit_log.remove_versions(lake, version)
    assert not commit_log.remove_versions(lake, version)
    assert num_rows(lake) == 66
    dataset = engine.deeplake().open(lake)
    dataset.append({"name": ["after"], "score": [1.0]})
    dataset.commit("after")
    assert [entry.message for entry in engine.open_dataset(lake).history][-2:] == ["commit 65", "after"]


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1.7e308])
def test_mending_keeps_every_row(lake: str, value: float) -> None:
    spoil(lake, value)
    saved: list[Path] = []
    assert sum(commit_log.mend(file, saved.append) for file in commit_log.log_files(lake)) > 0
    assert len(saved) == 1
    dataset = engine.open_dataset(lake)
    assert dataset["score"][66:69].tolist() == [value, 5.0, value]


def test_versions_are_removed_one_by_one_down_to_the_first(lake: str) -> None:
    """Go back beyond files that sum up earlier versions."""
    assert any("o" in file.name for files in commit_log.main_log_files(lake).values() for file in files)
    for version in range(66, 58, -1):
        commit_log.remove_versions(lake, version)
        assert num_rows(lake) == version - 1


def test_messages_are_read_from_the_log(lake: str) -> None:
    versions = commit_log.main_log_files(lake)
    assert commit_log.commit_message_of(versions[max(versions)][0]) == "commit 65"


def test_intact_files_are_not_changed(lake: str) -> None:
    before = [file.read_bytes() for file in commit_log.log_files(lake)]
    assert [commit_log.mend(file, lambda _: None) for file in commit_log.log_files(lake)] == [0] * len(before)
    assert [file.read_bytes() for file in commit_log.log_files(lake)] == before


@pytest.mark.parametrize("size", [0, 1, 14, 15, 16, 269, 270, 271, 525, 10_000])
def test_compressed_data_is_decompressed(size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    assert commit_log.decompress(commit_log._compress(content[:size])) == content[:size]


@given(st.binary(max_size=60))
def test_damaged_data_is_an_error(data: bytes) -> None:
    try:
        size = len(commit_log.decompress(data))
    except ValueError:
        return
    assert size == int.from_bytes(data[:4], "little")


@given(st.recursive(st.floats() | st.text() | st.none() | st.booleans(), lambda part: st.dictionaries(st.text(), part)))
def test_only_what_is_not_json_is_mended(value: object) -> None:
    """Words and numbers within texts stay as they are."""
    mended = commit_log._TOKEN.sub(lambda match: commit_log._mend_token(match[0]), json.dumps(value).encode())
    assert json.loads(mended, parse_constant=pytest.fail) == expected(value)


def expected(value: object) -> object:
    if isinstance(value, dict):
        return {name: expected(part) for name, part in value.items()}
    if not isinstance(value, float):
        return value
    return 0 if math.isnan(value) else max(-sys.float_info.max, min(value, sys.float_info.max))
