"""Test provenance: it is shown, batches are rebuilt from it, and runs are reproduced from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.lake.dataset import open_lake
from lakeclip.text.tokenizer import tokenize
from lakeclip.training.reproduce import replay_step
from tests import preloaded
from tests.conftest import scene_samples
from tests.integration.test_train import start, stop_after, train_args


def record_run(
    folder: Path, config: dict[str, Any], devices: int = 1, resume: Path | None = None
) -> dict[int, list[Any]]:
    """Train in a separate process; return the batches of each step, ordered by (batch, rank)."""
    folder.mkdir()
    request = {"folder": str(folder), "config": config, "devices": devices, "resume": str(resume) if resume else None}
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "tests.integration.recorded_run", str(folder / "request.json")]
    result = preloaded.run(command, timeout=200)
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(folder / f"seen-{rank}.pt", weights_only=True) for rank in range(devices)]
    return {
        step: [batch for group in zip(*(rank[step] for rank in ranks), strict=True) for batch in group]
        for step in ranks[0]
    }


def assert_replays(checkpoint: Path, seen: dict[int, list[Any]]) -> None:
    """Raise unless a replay yields the recorded batches, pixel for pixel and token for token."""
    content = read_checkpoint(checkpoint)
    for step, recorded in seen.items():
        replay = replay_step(content, step)
        batches = [replay.stream[span] for _, _, span in replay.spans(step)]
        assert len(batches) == len(recorded)
        for batch, (images, texts, rows) in zip(batches, recorded, strict=True):
            assert batch.rows.tolist() == rows.tolist(), step
            assert torch.equal(batch.images, images), step
            assert torch.equal(batch.texts, texts), step


def settings(lake: Path | str, models: Path, **data: Any) -> dict[str, Any]:
    return {
        "model": "tiny-vit",
        "model_config": str(models),
        "data": {"lake": str(lake), "batch_size": 8, "num_workers": 0, "val_fraction": 0.1, **data},
        "trainer": {"max_epochs": 2, "max_steps": 32},
    }


def other_lake(folder: Path, num: int = 60) -> Path:
    fill_lake([Samples("more", scene_samples(num, seed=5), num)], str(folder / "other"))
    return folder / "other"


@pytest.mark.slow
def test_a_replay_yields_the_batches_of_the_run(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    """Check a weighted mixture with small images first, across an epoch's end, then a resume with other settings."""
    lake = f"{pairs_lake}:0.7 + {other_lake(tmp_path)}:0.3"
    config = settings(lake, tiny_models, small_images="16:0.5", weights="width", seed=3)
    config["trainer"]["accumulate"] = 2
    config["trainer"]["max_steps"] = 18
    seen = record_run(tmp_path / "a", config)
    assert len(seen) == 18
    assert {batch[0].shape[-1] for step in seen.values() for batch in step} == {16, 32}
    assert_replays(tmp_path / "a/end.ckpt", seen)

    config["data"] |= {"num_workers": 1, "batch_size": 12}
    config["trainer"] |= {"max_steps": 22, "max_epochs": 4}
    later = record_run(tmp_path / "b", config, resume=tmp_path / "a/end.ckpt")
    assert sorted(later) == [19, 20, 21, 22]
    assert_replays(tmp_path / "b/end.ckpt", {**seen, **later})
    first, second = read_checkpoint(tmp_path / "b/end.ckpt").lineage["parts"]
    assert first["changed"] == {}
    assert second["step"] == 18
    assert second["changed"]["config.data.batch_size"] == [8, 12]


@pytest.mark.slow
def test_a_replay_of_two_processes(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    config = settings(pairs_lake, tiny_models, batch_size=4)
    config["trainer"]["max_steps"] = 4
    seen = record_run(tmp_path / "two", config, devices=2)
    assert len(seen[1]) == 2
    assert_replays(tmp_path / "two/end.ckpt", seen)
    config["trainer"]["max_steps"] = 6
    config["data"]["batch_size"] = 8
    single = record_run(tmp_path / "one", config, resume=tmp_path / "two/end.ckpt")
    assert_replays(tmp_path / "one/end.ckpt", {**seen, **single})
    changed = read_checkpoint(tmp_path / "one/end.ckpt").lineage["parts"][1]["changed"]
    assert changed["world_size"] == [2, 1]


@pytest.mark.slow
def test_a_reproduced_run_reaches_the_same_weights(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check a run whose lake has grown since and whose model file is gone."""
    lake, models = tmp_path / "lake", tmp_path / "models.yaml"
    shutil.copytree(pairs_lake, lake)
    shutil.copy(tiny_models, models)
    main(train_args(lake, models, tmp_path, "a", "--max-steps", "14", "--val-every-steps", "5"))
    best = tmp_path / "a/checkpoints/best.ckpt"
    assert read_checkpoint(best).lineage["progress"]["step"] in (5, 10, 14)
    more = [sample._replace(key=f"more {number}") for number, sample in enumerate(scene_samples(40, seed=9))]
    fill_lake([Samples("more", iter(more), 40)], str(lake), append=True)
    models.unlink()
    assert len(open_lake(lake)) == 280
    capsys.readouterr()
    for checkpoint, name in ((tmp_path / "a", "again"), (best, "best")):
        main(["train", "--repeat", str(checkpoint), "--name", name, "--num-workers", "1"])
        assert "identical, bit for bit" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--repeat", str(tmp_path / "a"), "--lr", "1e-4"])
    assert stopped.value.code == 2
    assert "optimizer.lr 0.0001, not 0.001" in capsys.readouterr().err
    main(["inspect", str(best)])
    output = capsys.readouterr().out
    for text in (
        str(lake),
        "every checksum agrees",
        "steps of the full run",
        "torch",
        "threads",
        "--repeat",
        "sha256",
    ):
        assert text in output, text
    shutil.rmtree(lake)
    with pytest.raises(SystemExit):
        main(["train", "--repeat", str(best), "--name", "gone"])
    assert "is gone" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_run_is_reproduced_as_one(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_args(pairs_lake, tiny_models, tmp_path, "cut", "--max-epochs", "2", "--val-every-steps", "20")
    code, _, errors = stop_after(35, signal.SIGINT, arguments)
    assert code == 130, errors
    stopped = shutil.copy(tmp_path / "cut/checkpoints/last.ckpt", tmp_path / "stopped.ckpt")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(["train", "--resume", str(tmp_path / "cut"), "--num-workers", "1"])
    finally:
        torch.set_num_threads(before)
    parts = read_checkpoint(tmp_path / "cut").lineage["parts"]
    assert [set(part["changed"]) for part in parts] == [set(), {"config.data.num_workers"}]
    capsys.readouterr()
    for checkpoint, name in ((Path(stopped), "early"), (tmp_path / "cut", "whole")):
        main(["train", "--repeat", str(checkpoint), "--name", name])
        assert "identical, bit for bit" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_cannot_be_reproduced_says_why(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(train_args(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "3"))
    main(["train", "--resume", str(tmp_path / "a"), "--max-steps", "5"])
    with pytest.raises(SystemExit):
        main(["train", "--repeat", str(tmp_path / "a")])
    assert "from step 4: config.trainer.max_steps 3 → 5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "a"), "--batch", "6"])
    assert "1 to 5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "a"), "--query", "width > 3"])
    assert "--query does not apply" in capsys.readouterr().err
    # Different weights are reported: change one number of the checkpoint.
    content = torch.load(tmp_path / "a/checkpoints/best.ckpt", weights_only=True)
    content["lakeclip"]["parts"] = content["lakeclip"]["parts"][:1]
    content["lakeclip"]["environment"]["torch"] = "1.0"
    content["state_dict"]["model.logit_scale"] += 1
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--repeat", str(tmp_path / "moved.ckpt"), "--name", "c", "--runs", str(tmp_path)])
    assert stopped.value.code == 1
    output = capsys.readouterr().out
    assert "(logit_scale)" in output
    assert "environment.torch: 1.0 →" in output


def test_the_batch_page_shows_the_models_input(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(train_args(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "2"))
    capsys.readouterr()
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    main(["inspect", str(tmp_path / "a"), "--batch", "1", "--html", str(page), "--json", str(figures)])
    samples = json.loads(figures.read_text())["samples"]
    assert len(samples) == 8
    output, html = capsys.readouterr().out, page.read_text()
    assert html.count("<img") == 8
    assert "http" not in html.partition("<main>")[2]
    replay = replay_step(read_checkpoint(tmp_path / "a"), 1)
    ((_, _, span),) = replay.spans(1)
    batch = replay.stream[span]
    assert [sample["row"] for sample in samples] == batch.rows.tolist()
    assert all(sample["caption"] in output for sample in samples)
    assert torch.equal(tokenize([sample["caption"] for sample in samples])[:, : batch.texts.shape[1]], batch.texts)
    main(["inspect", str(tmp_path / "a"), "--batch", "2", "--samples", "3"])
    assert "the first 3 of 8" in capsys.readouterr().out


def test_a_checkpoint_does_not_identify_its_user(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    os.environ["LAKECLIP_TEST_PLANTED"] = "planted-secret"
    try:
        with start(train_args(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "1")) as process:
            assert process.communicate(timeout=200)
    finally:
        del os.environ["LAKECLIP_TEST_PLANTED"]
    lineage = read_checkpoint(tmp_path / "a").lineage
    assert json.dumps(lineage), "plain values only"
    assert "planted-secret" not in json.dumps(lineage)
    assert os.uname().nodename not in json.dumps([lineage["environment"], lineage["code"]])
    assert np.isfinite(lineage["progress"]["total_steps"])
