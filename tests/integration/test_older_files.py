"""Lakes, runs and checkpoints written on 2026-12-01, before modules and names were reorganised, stay usable.

`tests/data/before_2026_12` holds a folder of pairs, the lake made from it, a run from scratch in two segments (average
of the weights, bfloat16 optimiser states), a fine-tuning of that run, and results of the code of that day.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import lakeclip
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.lake.dataset import open_lake

_FILES = Path(__file__).parents[1] / "data" / "before_2026_12"


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working folder."""
    folder = tmp_path / "before"
    shutil.copytree(_FILES, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((_FILES / "expected.json").read_text())
    return values


def test_the_lake_opens_and_nothing_is_added_twice(older: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lake = open_lake("photos.lake")
    assert len(lake) == 16
    assert all(row.image and row.captions and not row.damage for row in lake.read(range(16)))
    main(["ingest", "--append", "pairs", "photos.lake"])
    assert len(open_lake("photos.lake")) == 16


@pytest.mark.parametrize("run", ["scratch", "tuned"])
def test_a_checkpoint_gives_the_same_features_and_scores(
    older: Path, expected: dict[str, Any], run: str, tmp_path: Path
) -> None:
    checkpoint = f"{run}/checkpoints/last.ckpt"
    model, tokenize, transform = lakeclip.load(checkpoint)
    photo = min(Path("pairs").glob("*.jpg")).read_bytes()
    with torch.no_grad():
        image = model.encode_image(transform(photo)[None]).flatten()
        text = model.encode_text(tokenize(["a red circle"])).flatten()
    torch.testing.assert_close(image, torch.tensor(expected[run]["image"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text, torch.tensor(expected[run]["text"]), rtol=1e-4, atol=1e-5)
    scores = tmp_path / "scores.json"
    main(["evaluate", "retrieval", "--checkpoint", checkpoint, "--lake", "photos.lake", "--json", str(scores)])
    found = json.loads(scores.read_text())
    for side in ("image_to_text", "text_to_image"):
        assert found[side] == pytest.approx(expected[run]["retrieval"][side], abs=1e-6)


@pytest.mark.parametrize(("verb", "run", "step"), [("train", "scratch", 6), ("finetune", "tuned", 4)])
@pytest.mark.slow
def test_a_run_resumes(older: Path, verb: str, run: str, step: int) -> None:
    before = read_checkpoint(run).lineage
    main([verb, "--resume", run, "--max-steps", str(step), "--lake", str(older / "photos.lake")])
    after = read_checkpoint(older / run / "checkpoints" / "last.ckpt").lineage
    assert after["progress"]["step"] == step
    assert after["progress"]["samples_seen"] == 4 * step
    assert after["parts"][: len(before["parts"])] == before["parts"]
    assert after["data"]["version"] == before["data"]["version"]


@pytest.mark.parametrize("run", ["scratch", "tuned"])
def test_a_checkpoint_is_inspected_and_reported(older: Path, capfd: pytest.CaptureFixture[str], run: str) -> None:
    main(["inspect", run])
    assert "sha256" in capfd.readouterr().out
    main(["evaluate", "report", "--run", run])
    assert (older / run / "report.html").stat().st_size > 10_000
