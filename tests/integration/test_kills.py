"""Runs that are cut off at any moment, and what they go on from."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from lakeclip.checkpoints.native import newest_checkpoint, read_checkpoint
from lakeclip.cli.app import main
from tests.integration.test_train import assert_same_weights, curves, progress, start, words

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark in small: killed in steps, in validation, while checkpoints are written, and in an ingest."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import soak

    found = soak.soak(tmp_path, kills=3, epochs=1, seed=2)
    assert found["kills"] >= 3
    assert found["equal"], found["runs"]
    # Of two runs that are not the same, it says so.
    last = tmp_path / "runs/cut-0/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["state_dict"]["model.ln_final.bias"][0] += 1e-7
    torch.save(content, last)
    assert soak.compare(tmp_path / "runs/whole", tmp_path / "runs/cut-0") == ["state_dict.model.ln_final.bias"]


def test_checkpoints_by_steps_and_the_last_few_kept(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    main(
        words(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "8", "--save-every-steps", "2", "--keep-last", "3")
    )
    names = sorted(path.name for path in (tmp_path / "a/checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", *(f"step-{step:08d}.ckpt" for step in (4, 6, 8))]
    assert read_checkpoint(tmp_path / "a/checkpoints/step-00000004.ckpt").lineage["progress"]["step"] == 4


def test_checkpoints_by_minutes(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    more = ("--max-steps", "8", "--keep-last", "9")
    main(words(pairs_lake, tiny_models, tmp_path, "often", *more, "--save-every-minutes", "1e-6"))
    steps = sorted(int(path.stem.partition("-")[2]) for path in (tmp_path / "often/checkpoints").glob("step-*"))
    assert steps == list(range(1, 9))
    main(words(pairs_lake, tiny_models, tmp_path, "seldom", *more))
    assert [path.name for path in (tmp_path / "seldom/checkpoints").glob("step-*")] == ["step-00000008.ckpt"]


def test_a_damaged_checkpoint_is_passed_over(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """… and the run ends with the weights and curves that it had the first time."""
    main(
        words(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "8", "--save-every-steps", "3", "--keep-last", "3")
    )
    run = tmp_path / "a"
    ended, lines = read_checkpoint(run / "checkpoints/last.ckpt").state_dict, curves(run)
    ended = {name: value.clone() for name, value in ended.items()}
    for name in ("last.ckpt", "step-00000008.ckpt"):
        path = run / "checkpoints" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()  # they are one file by two names
        path.write_bytes(content)
    reached = newest_checkpoint(run)
    assert reached is not None
    assert reached.path.name == "step-00000006.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    main(["train", "--resume", str(run)])
    again = read_checkpoint(run / "checkpoints/last.ckpt").state_dict
    assert all(torch.equal(again[name], value) for name, value in ended.items())
    assert [row["train/loss"] for row in curves(run)] == [row["train/loss"] for row in lines]


def test_one_command_begins_and_goes_on(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that a cluster may stop and start again: --resume auto."""
    more = ("--max-epochs", "5", "--val-every-steps", "20", "--resume", "auto")
    command = words(pairs_lake, tiny_models, tmp_path, "job", *more)
    with start(command) as process:
        while process.poll() is None and not (tmp_path / "job/metrics.csv").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM, output + errors
    reached = progress(tmp_path / "job")["step"]
    main(command)
    assert progress(tmp_path / "job")["step"] > reached
    steps = [int(row["step"]) for row in curves(tmp_path / "job") if row["train/loss"]]
    assert steps == list(range(steps[-1] + 1)), "each step once, that of the stop included"
    # Cut off before there was a checkpoint.
    for path in (tmp_path / "job/checkpoints").iterdir():
        path.unlink()
    capsys.readouterr()
    main([*command, "--max-steps", "2"])
    assert "beginning anew" in capsys.readouterr().out
    assert progress(tmp_path / "job")["step"] == 2
    with pytest.raises(SystemExit):
        main(["train", "--resume", "auto", "--lake", str(pairs_lake)])
    assert "--name NAME" in capsys.readouterr().err


def test_another_number_of_ranks_has_the_same_global_batches(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = ("--devices", "2", "--strategy", "ddp", "--batch-size", "4")
    main(words(pairs_lake, tiny_models, tmp_path, "one", "--max-steps", "8"))
    main(
        words(
            pairs_lake,
            tiny_models,
            tmp_path,
            "first",
            "--max-steps",
            "8",
            "--save-every-steps",
            "3",
            "--keep-last",
            "9",
        )
    )
    for name in ("last.ckpt", "best.ckpt", "step-00000006.ckpt", "step-00000008.ckpt"):
        (tmp_path / "first/checkpoints" / name).unlink()
    with start(["train", "--resume", str(tmp_path / "first"), *two[:4]]) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    assert "2 devices, 1 before: 4 pairs on each, for the same batches of 8" in output
    assert_same_weights(tmp_path / "one", tmp_path / "first")
    # … and back, where eight pairs at once are more than a device had.
    for name in ("last.ckpt", "best.ckpt", "step-00000006.ckpt", "step-00000008.ckpt"):
        (tmp_path / "first/checkpoints" / name).unlink()
    capsys.readouterr()
    with start(["train", "--resume", str(tmp_path / "first"), "--devices", "3", "--strategy", "ddp"]) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "batches of 8 pairs cannot be divided between 3 devices" in errors
