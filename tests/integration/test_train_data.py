"""Data of training runs: mixtures, the rows shown first, and unusable rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.ingestion.writer import LakeWriter
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.images import ImageInfo
from tests import preloaded
from tests.conftest import scene_samples


def train_args(lakes: list[str], models: Path, runs: Path, *more: object) -> list[str]:
    named = [word for lake in lakes for word in ("--lake", lake)]
    model = ["--model", "tiny-vit", "--model-config", models, "--accelerator", "cpu"]
    small = ["--batch-size", 8, "--max-steps", 12, "--num-workers", 0, "--runs", runs, "--name", "run"]
    return [str(word) for word in ("train", *named, *model, *small, *more)]


def train(lakes: list[str], models: Path, runs: Path, *more: object) -> None:
    main(train_args(lakes, models, runs, *more))


def test_a_mixture_is_trained_on_resumed_and_reported(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LakeWriter(str(tmp_path / "other.lake")) as writer:
        for sample in scene_samples(24, seed=9):
            writer.append(sample._replace(metadata={"NSFW": "UNLIKELY"}), ImageInfo("jpeg", 64, 64))
    lakes = [f"{pairs_lake}:0.75", f"{tmp_path / 'other.lake'}:0.25"]
    train(lakes, tiny_models, tmp_path, "--filter-nsfw", "--val-fraction", 0.1)
    said = capsys.readouterr().out
    assert f"data: {pairs_lake}: 180 of 240 rows by \"NSFW == 'UNLIKELY'\", 75.0% of every batch" in said
    assert said.count("\n  row ") == 10
    lineage = read_checkpoint(tmp_path / "run").lineage
    assert lineage["data"]["path"] == " + ".join(lakes)
    assert lineage["data"]["query"] == "NSFW == 'UNLIKELY'"
    assert (tmp_path / "run/report.html").exists()
    assert "note:" not in capsys.readouterr().err
    main(["train", "--resume", str(tmp_path / "run"), "--max-steps", "14"])
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt").lineage["progress"]["step"] == 14


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_that_cannot_be_used_are_listed_and_marked(num_workers: int, tiny_models: Path, tmp_path: Path) -> None:
    """No batch gets smaller: another row replaces each bad one."""
    with LakeWriter(str(tmp_path / "lake")) as writer:
        for i, sample in enumerate(scene_samples(40)):
            bad = {3: sample._replace(image=sample.image[:300]), 11: sample._replace(captions=())}
            writer.append(bad.get(i, sample), ImageInfo("jpeg", 64, 64))
    more = ["--val-fraction", 0, "--num-workers", num_workers, "--mark-unusable"]
    args = train_args([str(tmp_path / "lake")], tiny_models, tmp_path, *more)
    trained = preloaded.run([preloaded.LAKECLIP, *args], timeout=280)
    assert trained.returncode == 0, trained.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/quarantine.jsonl").read_text().splitlines()]
    found = {line["row"]: line["reason"] for line in lines}
    assert set(found) == {3, 11}
    assert found[11] == "the image has no caption"
    assert {line["lake"] for line in lines} == {str(tmp_path / "lake")}
    assert "2 rows" in trained.stdout
    assert "quarantine.jsonl" in trained.stdout
    assert "marked in the lake: 2" in trained.stdout
    assert len(open_lake(tmp_path / "lake")) == 38
    assert 3 not in open_lake(tmp_path / "lake").base_rows(range(38))


def test_captions_weights_and_a_select_from_the_command_line(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    select = "SELECT * WHERE NSFW == 'UNLIKELY' ORDER BY label LIMIT 40"
    more = ["--query", select, "--caption-template", "a drawing of a {label}", "--weights", "width"]
    train([str(pairs_lake)], tiny_models, tmp_path, *more)
    said = capsys.readouterr().out
    assert f"40 of 240 rows by {select!r}" in said
    assert "a drawing of a blue" in said
    config = read_checkpoint(tmp_path / "run").lineage["config"]["data"]
    assert config["caption_template"] == "a drawing of a {label}"
    assert config["weights"] == "width"
