"""Runs of `lakeclip train`: their files, stopping and resuming, and one process compared with two."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lakeclip.checkpoints.layouts import load
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from tests.integration.steps import SIGNAL_AT
from tests.preloaded import LAKECLIP, Process

#: See `reference_run` in conftest.py.
ReferenceRun = Callable[..., Path]


def train_args(lake: Path, models: Path, runs: Path, name: str, *more: str) -> list[str]:
    data = ["--lake", str(lake), "--val-fraction", "0.1", "--batch-size", "8", "--num-workers", "0"]
    model = ["--model", "tiny-vit", "--model-config", str(models), "--lr", "1e-3"]
    return ["train", *data, *model, "--runs", str(runs), "--name", name, "--accelerator", "cpu", *more]


def curves(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_weights(run: Path, other: Path) -> None:
    """Check that the weights of two runs are equal up to rounding.

    The bias of an attention's keys is left out: it cancels in the softmax, so its gradient is only rounding error,
    which Adam scales up to whole steps.
    """
    states = [read_checkpoint(folder / "checkpoints/last.ckpt").state_dict for folder in (run, other)]
    assert states[0].keys() == states[1].keys()
    for key, expected in states[0].items():
        value = states[1][key]
        if key.endswith("attn.in_proj_bias"):
            queries, _, values = value.chunk(3)
            value = torch.cat([queries, values])
            queries, _, values = expected.chunk(3)
            expected = torch.cat([queries, values])
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")


def progress(run: Path) -> dict[str, int]:
    """Return step, epoch and samples of the run's last checkpoint."""
    reached = dict(read_checkpoint(run / "checkpoints/last.ckpt").lineage["progress"])
    assert reached.pop("seconds") > 0
    # The other values depend on the number of processes.
    return {name: reached[name] for name in ("step", "epoch", "samples_seen")}


def start(arguments: list[str], **environment: str) -> Process:
    """Start `lakeclip …` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return Process([LAKECLIP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def stop_after(step: int, number: signal.Signals, arguments: list[str]) -> tuple[int, str, str]:
    """Run `lakeclip …`, which gets a signal after a step; return its exit code, output and errors."""
    with start(arguments, **{SIGNAL_AT: f"{step}:{int(number)}"}) as process:
        output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def test_a_run_leaves_everything_and_is_quiet(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    with start(
        train_args(pairs_lake, tiny_models, tmp_path, "a", "--max-epochs", "2", "--val-every-steps", "9")
    ) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert errors == "", "nothing but mistakes goes to a pipe"
    assert "trained" in output
    assert "% waiting" in output, "one line of averages"
    run = tmp_path / "a"
    for name in (
        "config.yaml",
        "metrics.csv",
        "report.html",
        "MODEL_CARD.md",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    ):
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events*"))
    rows = curves(run)
    assert [row for row in rows if row["train/loss"] and row["train/samples_per_second"]]
    assert all(0 < float(row["train/mfu"]) < 1.2 for row in rows if row["train/loss"])
    assert all(0 <= float(row["train/data_wait"]) <= 1 for row in rows if row["train/loss"])
    assert all(0.05 < float(row["train/memory_gb"]) < 50 for row in rows if row["train/loss"])
    assert [row for row in rows if row["val/loss"] and row["val/image_to_text_R@5"]]

    model, tokenize, _ = load(run)
    with torch.no_grad():
        assert model.encode_text(tokenize(["a red circle"])).shape == (1, 32)
    lineage = read_checkpoint(run).lineage
    data = lineage["data"]
    assert data["path"] == str(pairs_lake)
    assert data["total_rows"] == data["rows"] == data["train_rows"] + data["val_rows"]
    assert lineage["config"]["optimizer"]["lr"] == 1e-3
    assert lineage["config"]["optimizer"]["betas"] == (0.9, 0.98), "the paper's, filled in"


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_end(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """A run stopped in the middle of an epoch ends with the weights of an uninterrupted one."""
    more = ("--max-epochs", "2", "--val-every-steps", "20")
    main(train_args(pairs_lake, tiny_models, tmp_path, "whole", *more))
    code, output, errors = stop_after(35, signal.SIGINT, train_args(pairs_lake, tiny_models, tmp_path, "cut", *more))
    assert code == 130, output + errors
    assert "Traceback" not in errors
    assert f"lakeclip train --resume {tmp_path / 'cut'}" in output
    total, reached = progress(tmp_path / "whole"), progress(tmp_path / "cut")
    assert 0 < reached["step"] < total["step"]
    main(["train", "--resume", str(tmp_path / "cut")])
    assert progress(tmp_path / "cut") == total
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    steps = [int(row["step"]) for row in curves(tmp_path / "cut") if row["train/loss"]]
    assert steps == sorted(set(steps)), "each step is in the curves once"
    assert steps[0] < reached["step"], "the curves of the first segment are kept"
    seconds = [float(row["train/seconds"]) for row in curves(tmp_path / "cut") if row["train/seconds"]]
    assert len(seconds) == len(steps)
    assert seconds == sorted(set(seconds)), "the clock resumes where the first segment stopped"


@pytest.mark.slow
def test_the_last_step_is_validated(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    """The last step may also be in the middle of an epoch, between two validations."""
    for name, more in (("short", ("--max-steps", "3")), ("long", ("--max-epochs", "1", "--val-every-steps", "20"))):
        main(train_args(pairs_lake, tiny_models, tmp_path, name, *more))
        last = progress(tmp_path / name)["step"]
        assert [int(row["step"]) for row in curves(tmp_path / name) if row["val/loss"]][-1] == last - 1
        assert (tmp_path / name / "checkpoints/best.ckpt").exists()


@pytest.mark.slow
def test_a_compiled_tower_trains_like_an_uncompiled_one(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, reference_run: ReferenceRun
) -> None:
    with start(train_args(pairs_lake, tiny_models, tmp_path, "compiled", "--max-steps", "3", "--compile")) as process:
        output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, output + errors
    assert "compiled: the first step took" in output
    assert_same_weights(reference_run("--max-steps", "3"), tmp_path / "compiled")


@pytest.mark.slow
def test_two_processes_equal_one(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, reference_run: ReferenceRun
) -> None:
    """The same global batches give the same weights; in micro-batches too."""
    one = reference_run("--max-steps", "4")
    two = train_args(
        pairs_lake, tiny_models, tmp_path, "two", "--max-steps", "4", "--devices", "2", "--strategy", "ddp"
    )
    two += ["--minibatch-size", "3"]
    two[two.index("--batch-size") + 1] = "4"
    with start(two) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    assert_same_weights(one, tmp_path / "two")
    losses = [[row["train/loss"] for row in curves(run) if row["train/loss"]] for run in (one, tmp_path / "two")]
    assert [float(loss) for loss in losses[0]] == pytest.approx([float(loss) for loss in losses[1]], rel=1e-4)


@pytest.mark.slow
def test_micro_batches_equal_the_whole_batch(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, reference_run: ReferenceRun
) -> None:
    main(train_args(pairs_lake, tiny_models, tmp_path, "parts", "--max-steps", "3", "--minibatch-size", "3"))
    assert_same_weights(reference_run("--max-steps", "3"), tmp_path / "parts")


@pytest.mark.slow
def test_the_sigmoid_objective_trains_resumes_and_is_evaluated(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("--objective", "sigmoid", "--same-by", "image", "caption", "label")
    main(train_args(pairs_lake, tiny_models, tmp_path, "a", "--max-steps", "12", *shared))
    losses = [float(row["train/loss"]) for row in curves(tmp_path / "a") if row["train/loss"]]
    assert losses[-1] < losses[0]
    assert [row for row in curves(tmp_path / "a") if row["val/loss"]]
    model = load(tmp_path / "a").model
    assert model.logit_bias is not None
    assert float(model.logit_bias.detach()) != -10
    main(["evaluate", "retrieval", "--checkpoint", str(tmp_path / "a"), "--lake", str(pairs_lake)])
    assert "R@" in capsys.readouterr().out
    main(["train", "--resume", str(tmp_path / "a"), "--max-steps", "14"])
    assert progress(tmp_path / "a")["step"] == 14
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(tmp_path / "a"), "--objective", "softmax"])
    assert "another objective" in capsys.readouterr().err


@pytest.mark.slow
def test_shared_ids_train_in_two_processes_as_in_one(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    """Rows of different processes that share a label are not negatives of each other, as in one process."""
    shared = ("--max-steps", "3", "--same-by", "image", "caption", "label", "--label-smoothing", "0.1")
    main(train_args(pairs_lake, tiny_models, tmp_path, "one", *shared))
    two = train_args(pairs_lake, tiny_models, tmp_path, "two", *shared, "--devices", "2", "--strategy", "ddp")
    two[two.index("--batch-size") + 1] = "4"
    with start(two) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    assert_same_weights(tmp_path / "one", tmp_path / "two")
