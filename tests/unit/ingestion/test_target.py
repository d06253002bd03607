"""Checks of the target path before an ingest."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.errors import LakeError, OutputError
from lakeclip.ingestion.target import check_target, remove_lake
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.images import ImageInfo
from tests.unit.lake.sample_files import sample, write_files


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    with LakeWriter(str(tmp_path / "lake")) as writer:
        writer.append(sample(), ImageInfo("jpeg", 24, 16))
    return tmp_path / "lake"


def test_new_paths_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_target(str(tmp_path / "new/lake"))
    check_target(str(tmp_path / "empty"))


def test_a_lake_is_replaced_only_with_overwrite(lake: Path) -> None:
    with pytest.raises(LakeError, match="there is already a lake") as caught:
        check_target(str(lake))
    assert "--overwrite" in caught.value.next_step
    check_target(str(lake), overwrite=True)
    remove_lake(str(lake))
    assert not lake.exists()


def test_a_folder_that_is_not_a_lake_is_never_overwritten(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "mine", {"thesis.tex": "x"})
    with pytest.raises(LakeError, match="is not a lake, so it is not overwritten") as caught:
        check_target(str(folder), overwrite=True)
    assert "thesis.tex" in caught.value.found
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        check_target(str(tmp_path / "file"), overwrite=True)


def test_a_lake_with_foreign_files_is_never_overwritten(lake: Path) -> None:
    write_files(lake, {"photos/me.jpg": "x"})
    with pytest.raises(LakeError, match="shares its folder") as caught:
        check_target(str(lake), overwrite=True)
    assert "photos" in caught.value.found
    remove_lake(str(lake))
    assert (lake / "photos/me.jpg").exists()
    assert (lake / "_deeplake_log").exists()


def test_a_source_inside_the_lake_is_an_error(lake: Path) -> None:
    inside = next(path for path in lake.iterdir() if path.name != "_deeplake_log")
    with pytest.raises(LakeError, match="is inside the lake"):
        check_target(str(lake), [str(inside)], overwrite=True)
