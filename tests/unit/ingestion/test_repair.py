"""`lakeclip ingest --repair`: lakes that were destroyed by a value, by a full disk, or by an incomplete copy."""

from __future__ import annotations

import gc
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from lakeclip.cli.app import main
from lakeclip.errors import ConfigError, LakeError
from lakeclip.ingestion.repair import repair_lake
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake import commit_log, engine
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.images import ImageInfo
from tests.unit.lake.sample_files import picture, sample

INFO = ImageInfo("jpeg", 24, 16)


def make_lake(path: Path, commits: int = 3) -> None:
    """Write a lake with a row in each commit."""
    with LakeWriter(str(path)) as writer:
        for number in range(commits):
            writer.append(sample(number, score=float(number)), INFO, f"{number}.tar")
            writer.commit()


def destroy(path: Path, *scores: float) -> None:
    """Add rows as earlier versions of lakeclip did, without a check of their values."""
    dataset = engine.deeplake().open(str(path))
    values = {name: np.asarray(dataset[name][0:1]).tolist() * len(scores) for name in ("crc32", "width", "height")}
    texts = {name: ["x"] * len(scores) for name in ("key", "format", "text", "captions", "source")}
    dataset.append({**values, **texts, "image": [picture(0)] * len(scores), "score": list(scores)})
    with pytest.raises(RuntimeError, match="Failed to parse JSON"):
        dataset.commit("rows 3-4 from bad.tar")
    dataset.rollback()
    del dataset
    gc.collect()


@pytest.mark.parametrize("scores", [(math.inf, 5.0), (5.0, -math.inf, math.inf), (1.7e308, 5.0, 1.7e308)])
def test_a_lake_that_a_number_destroyed_loses_no_row(tmp_path: Path, scores: tuple[float, ...]) -> None:
    path = tmp_path / "lake"
    make_lake(path)
    destroy(path, *scores)
    before = {file.name: file.read_bytes() for file in commit_log.log_files(str(path))}
    with pytest.raises(LakeError, match=f"lakeclip ingest --repair {path}"):
        open_lake(path)

    result = repair_lake(path)
    assert result.rows == 3 + len(scores)
    assert result.missing == {"score": len(scores) - 1}
    assert not result.removed
    stored = [None if score != score else score for score in map(float, open_lake(path).column("score"))]  # type: ignore[arg-type]
    assert stored == [0.0, 1.0, 2.0, *(5.0 if score == 5.0 else None for score in scores)]
    assert len(open_lake(path, "score > 4")) == 1
    kept = [file for file in Path(result.backup).rglob("*") if file.is_file()]
    assert kept
    assert all(before[file.name] == file.read_bytes() for file in kept)

    with LakeWriter(str(path), existing=True) as writer:
        writer.append(sample(9, score=9.0), INFO)
    assert open_lake(path).column("score")[-1] == 9.0
    assert not repair_lake(path).backup


def test_a_commit_with_lost_files_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "lake"
    make_lake(path, 2)
    before = {name for name, _ in engine.open_dataset(str(path))._datafiles}
    with LakeWriter(str(path), existing=True) as writer:
        writer.append(sample(2, score=2.0), INFO, "2.tar")
    name = next(name for name, _ in engine.open_dataset(str(path))._datafiles if name and name not in before)
    os.truncate(path / name, 3)
    with pytest.raises(LakeError, match=f"--repair {path}"):
        open_lake(path)
    result = repair_lake(path)
    lake = open_lake(path)
    assert len(lake) == result.rows == 2
    assert result.removed == ["rows 2-2 from 2.tar"]
    assert lake.column("key") == ["key0", "key1"]


@pytest.mark.parametrize("damage", [b"", b"\x10\x00\x00\x00\xf0"])
def test_a_log_that_is_cut_off_loses_its_last_commits_only(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "lake"
    make_lake(path)
    versions = commit_log.main_log_files(str(path))
    number = next(
        number for number, files in versions.items() if "from 1.tar" in commit_log.commit_message_of(files[0])
    )
    versions[number][0].write_bytes(damage)
    result = repair_lake(path)
    assert result.rows == len(open_lake(path)) == 1
    assert "rows 2-2 from 2.tar" in result.removed
    with LakeWriter(str(path), existing=True) as writer:
        writer.append(sample(1, score=1.0), INFO)
    assert open_lake(path).column("key") == ["key0", "key1"]


def test_a_lake_without_a_readable_version_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "lake"
    make_lake(path)
    for file in commit_log.log_files(str(path)):
        if file.parent.name != "_meta":
            file.write_bytes(b"")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lakeclip.lock"}
    with pytest.raises(LakeError, match="cannot be repaired") as caught:
        repair_lake(path)
    assert f"lakeclip ingest SOURCE {path} --overwrite" in caught.value.next_step
    assert {file: file.read_bytes() for file in before} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["lake"]


def test_what_is_not_a_damaged_local_lake(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no log of Deep Lake"):
        repair_lake(tmp_path)
    with pytest.raises(LakeError, match="copy it to a local folder"):
        repair_lake("s3://bucket/lake")
    make_lake(tmp_path / "lake")
    assert repair_lake(tmp_path / "lake").backup == ""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Repair a lake as the error on opening it says."""
    path = tmp_path / "lake"
    make_lake(path)
    destroy(path, math.inf, 5.0)
    main(["ingest", "--repair", str(path)])
    printed = capsys.readouterr().out
    assert "infinite or huge numbers in score" in printed
    assert f"{path}.before-repair" in printed
    assert f"next: lakeclip inspect {path}" in printed
    assert len(open_lake(path)) == 5


def test_the_command_does_nothing_else(tmp_path: Path) -> None:
    from lakeclip.cli.ingest import run

    for flags in (["--append"], [str(tmp_path)]):
        with pytest.raises(ConfigError, match="does nothing else"):
            run(["--repair", str(tmp_path / "lake"), *flags])


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "1e999", "NaN", "1.7e308", "[1, Infinity]"])
def test_numbers_of_a_table_never_destroy_the_lake(
    tmp_path: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ingest a number that JSON has and Deep Lake cannot read into a lake with rows."""
    (tmp_path / "p.jpg").write_bytes(picture(0))
    (tmp_path / "good.csv").write_text("filepath,caption,score\np.jpg,a red thing,0.5\n")
    bad = f'{{"filepath": "p.jpg", "caption": "a green thing", "score": {number}}}\n'
    (tmp_path / "bad.jsonl").write_text(bad * 2)
    path = tmp_path / "lake"
    main(["ingest", str(tmp_path / "good.csv"), str(path)])
    main(["ingest", str(tmp_path / "bad.jsonl"), str(path), "--append", "--report", str(tmp_path / "report.json")])
    lake = open_lake(path)
    assert len(lake) == 3
    scores = lake.column("score")
    if number.startswith("["):
        assert scores == ["0.5", "[1, null]", "[1, null]"]
    else:
        assert scores[0] == 0.5
        assert all(math.isnan(score) for score in scores[1:])  # type: ignore[arg-type]
    changed = json.loads((tmp_path / "report.json").read_text())["changed"]
    assert sum(changed.values()) == (0 if number == "NaN" else 2)
    assert ("stored as missing" in capsys.readouterr().out) == (number != "NaN")
