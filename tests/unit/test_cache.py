from __future__ import annotations

import os
from pathlib import Path

import pytest

from lakeclip.cache import FileCache, open_cache


def test_the_least_recently_used_files_are_removed(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, max_bytes=350)
    for age, name in enumerate("abc"):
        assert cache.write(tmp_path / "x" / name, [b"1" * 60, b"2" * 40])
        os.utime(tmp_path / "x" / name, (1000 + age, 1000 + age))
    cache.mark_used(tmp_path / "x" / "a")
    assert cache.write(tmp_path / "y" / "d", [b"3" * 100])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a", "c", "d"]
    assert (tmp_path / "x" / "a").read_bytes() == b"1" * 60 + b"2" * 40


def test_a_file_larger_than_the_limit_is_not_written(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, max_bytes=350)
    cache.write(tmp_path / "a", [b"1" * 300])
    assert not cache.write(tmp_path / "b", [b"2" * 351])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_locks_are_kept_and_stale_temporary_files_removed(tmp_path: Path) -> None:
    for name in ("a.lock", "stale.tmp", "new.tmp"):
        (tmp_path / name).write_bytes(b"x" * 10)
    os.utime(tmp_path / "stale.tmp", (1000, 1000))
    os.utime(tmp_path / "a.lock", (1000, 1000))
    FileCache(tmp_path, max_bytes=125).write(tmp_path / "b", [b"1" * 100])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lock", "b", "new.tmp"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        FileCache(tmp_path, max_bytes=100).write(tmp_path / "folder", [b"x"])
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_half_of_the_disk_is_the_default_limit(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert 0 < FileCache(tmp_path).max_bytes < status.f_frsize * status.f_blocks


def test_the_environment_sets_the_folder_and_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKECLIP_CACHE", str(tmp_path))
    for limit, expected in (("0.001", 1_000_000), ("7", 5_000_000)):
        monkeypatch.setenv("LAKECLIP_CACHE_GB", limit)
        cache = open_cache("x", 5_000_000)
        assert cache is not None
        assert (cache.folder, cache.max_bytes) == (tmp_path / "x", expected)
    monkeypatch.setenv("LAKECLIP_CACHE_GB", "0")
    assert open_cache("x") is None
