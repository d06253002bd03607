"""Test runs that are interrupted at any moment, and the checkpoints from which they resume."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from lakeclip.checkpoints.native import newest_checkpoint, read_checkpoint
from lakeclip.cli.app import main
from tests.integration.test_train import (
    ReferenceRun,
    assert_same_weights,
    curves,
    progress,
    start,
    stop_after,
    train_args,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_killed_several_times_ends_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the benchmark in small: kill runs in steps, in validation, while saving, and during an ingest."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import soak

    result = soak.soak(tmp_path, kills=3, epochs=1, seed=2)
    assert result["kills"] >= 3
    assert result["equal"], result["runs"]
    # It reports a difference between runs that are not equal.
    last = tmp_path / "runs/cut-0/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["state_dict"]["model.ln_final.bias"][0] += 1e-7
    torch.save(content, last)
    assert soak.compare(tmp_path / "runs/whole", tmp_path / "runs/cut-0") == ["state_dict.model.ln_final.bias"]


def test_checkpoints_by_steps_keep_the_last_few(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    main(
        train_args(
            pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "8", "--save-every-steps", "2", "--keep-last", "3"
        )
    )
    names = sorted(path.name for path in (tmp_path / "a/checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", *(f"step-{step:08d}.ckpt" for step in (4, 6, 8))]
    assert read_checkpoint(tmp_path / "a/checkpoints/step-00000004.ckpt").lineage["progress"]["step"] == 4


@pytest.mark.slow
def test_checkpoints_by_minutes(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    options = ("--max-steps", "8", "--keep-last", "9")
    main(train_args(pairs_lake, tiny_models, tmp_path, "often", *options, "--save-every-minutes", "1e-6"))
    steps = sorted(int(path.stem.partition("-")[2]) for path in (tmp_path / "often/checkpoints").glob("step-*"))
    assert steps == list(range(1, 9))
    main(train_args(pairs_lake, tiny_models, tmp_path, "seldom", *options))
    assert [path.name for path in (tmp_path / "seldom/checkpoints").glob("step-*")] == ["step-00000008.ckpt"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Check that the resumed run ends with the same weights and curves as before."""
    main(
        train_args(
            pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "8", "--save-every-steps", "3", "--keep-last", "3"
        )
    )
    run = tmp_path / "a"
    expected, lines = read_checkpoint(run / "checkpoints/last.ckpt").state_dict, curves(run)
    expected = {name: value.clone() for name, value in expected.items()}
    for name in ("last.ckpt", "step-00000008.ckpt"):
        path = run / "checkpoints" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()  # the two names are hard links to one file
        path.write_bytes(content)
    reached = newest_checkpoint(run)
    assert reached is not None
    assert reached.path.name == "step-00000006.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    main(["train", "--resume", str(run)])
    resumed = read_checkpoint(run / "checkpoints/last.ckpt").state_dict
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    assert [row["train/loss"] for row in curves(run)] == [row["train/loss"] for row in lines]


@pytest.mark.slow
def test_one_command_starts_and_resumes(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check `--resume auto`, for jobs that a cluster may stop and start again."""
    options = ("--max-epochs", "2", "--val-every-steps", "20", "--resume", "auto")
    command = train_args(pairs_lake, tiny_models, tmp_path, "job", *options)
    code, output, errors = stop_after(35, signal.SIGTERM, command)
    assert code == 128 + signal.SIGTERM, output + errors
    reached = progress(tmp_path / "job")["step"]
    main(command)
    assert progress(tmp_path / "job")["step"] > reached
    steps = [int(row["step"]) for row in curves(tmp_path / "job") if row["train/loss"]]
    assert steps == list(range(steps[-1] + 1)), "each step once, including the one at the stop"
    # Interrupted before the first checkpoint.
    for path in (tmp_path / "job/checkpoints").iterdir():
        path.unlink()
    capsys.readouterr()
    main([*command, "--max-steps", "2"])
    assert "has no checkpoint yet: starting again" in capsys.readouterr().out
    assert progress(tmp_path / "job")["step"] == 2
    with pytest.raises(SystemExit):
        main(["train", "--resume", "auto", "--lake", str(pairs_lake)])
    assert "--name NAME" in capsys.readouterr().err


@pytest.mark.slow
def test_another_number_of_ranks_keeps_the_global_batches(
    pairs_lake: Path,
    tiny_models: Path,
    tmp_path: Path,
    reference_run: ReferenceRun,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = ("--devices", "2", "--strategy", "ddp", "--batch-size", "4")
    main(
        train_args(
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
    assert_same_weights(reference_run("--max-steps", "8"), tmp_path / "first")
    # A batch of 8 cannot be divided between 3 devices.
    for name in ("last.ckpt", "best.ckpt", "step-00000006.ckpt", "step-00000008.ckpt"):
        (tmp_path / "first/checkpoints" / name).unlink()
    capsys.readouterr()
    with start(["train", "--resume", str(tmp_path / "first"), "--devices", "3", "--strategy", "ddp"]) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "batches of 8 pairs cannot be divided between 3 devices" in errors
