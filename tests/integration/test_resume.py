"""Resuming as a transaction: flags are applied exactly, or refused with every file of the run unchanged."""

from __future__ import annotations

import contextlib
import csv
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

import lakeclip
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.cli.app import main
from lakeclip.cli.run_flags import run_verb
from lakeclip.cli.train import TrainFlags
from lakeclip.config.load import read_recipe
from lakeclip.config.schema import FinetuneConfig, TrainConfig
from lakeclip.errors import CheckpointError
from lakeclip.ingestion.run import fill_lake
from lakeclip.ingestion.sources.base import Samples
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.build import build_datamodule, build_module
from lakeclip.training.checks import check_train
from lakeclip.training.resume.settings import APPLIED, BY_CONTENT, FIXED, flag, is_operational
from tests.conftest import scene_samples
from tests.integration.test_train import train_args

LAST = "checkpoints/last.ckpt"
#: Steps of an epoch of the runs here.
EACH = 6


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rates(run: Path) -> dict[int, float]:
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]}


def resume(run: Path, *flags: str) -> None:
    """Do what `lakeclip train --resume RUN …` does, without the report."""
    run_verb(
        "train",
        TrainFlags,
        TrainConfig,
        ["--resume", str(run), *flags],
        lambda config, folder: lakeclip.train(config, resume=folder) and None,
    )


@pytest.fixture(scope="module")
def trained(pairs_lake: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs of six steps, with a checkpoint after every step."""
    runs = tmp_path_factory.mktemp("trained")
    args = train_args(pairs_lake, tiny_models, runs, "run", "--max-epochs", "3", "--keep-last", "99")
    args[args.index("--batch-size") + 1] = "32"
    args.append("--save-every-steps=1")
    run_verb("train", TrainFlags, TrainConfig, args[1:], lambda config, _: lakeclip.train(config) and None)
    assert sorted(rates(runs / "run")) == list(range(3 * EACH))
    return runs / "run"


@pytest.fixture
def run_at(trained: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Function that returns a copy of the run as it was after a step."""

    def copy(step: int) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.ckpt", "report.html", "MODEL_CARD.md"))
        shutil.copy(trained / f"checkpoints/step-{step:08d}.ckpt", folder / LAST)
        return folder

    return copy


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Resume with flags that are refused; return the message, after comparing every byte of the run's folder."""
    before = snapshot(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--resume", str(folder), *flags])
    assert stopped.value.code == 2
    assert snapshot(folder) == before
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors


def test_an_end_that_is_past_is_refused_and_the_run_resumes(
    run_at: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_at(9)
    errors = refused(run, capsys, "--max-epochs", "1")
    for part in ("no step would be left", "9 steps are done, in epoch 2", "--max-epochs 2 or more", "next:"):
        assert part in errors, errors
    assert "--max-steps 10 or more" in refused(run, capsys, "--max-steps", "9")
    assert "--max-steps 10 or more" in refused(run, capsys, "--max-steps", "4", "--lr", "1e-4")
    resume(run)
    assert read_checkpoint(run / LAST).lineage["progress"]["step"] == 3 * EACH


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--seed", "1"], "which rows come next"),
        (["--query", "width > 3"], "which rows come next"),
        (["--no-shuffle", "--lr", "1e-4"], "--shuffle"),
        (["--val-fraction", "0.2"], "best checkpoint is chosen by the validation"),
        (["--image-size", "64"], "image_resolution"),
        (["--model", "tiny-resnet"], "tiny-vit"),
        (["--states", "bf16"], "optimiser's states"),
        (["--ema-decay", "0.9"], "average of the weights"),
        (["--name", "other"], "move that folder to rename it"),
        (["--max-epoch", "5"], "--max-epoch"),
        (["--max-epochs", "0"], "at least 1"),
        (["--devices", "5", "--strategy", "ddp"], "cannot be divided between 5 devices"),
    ],
)
def test_what_cannot_be_applied_is_refused_and_nothing_changes(
    run_at: Callable[[int], Path], capsys: pytest.CaptureFixture[str], flags: list[str], part: str
) -> None:
    assert part in refused(run_at(4), capsys, *flags)


def test_other_data_is_refused_and_moved_data_is_not(
    run_at: Callable[[int], Path], pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_at(16)
    fill_lake([Samples("more", scene_samples(240, seed=3), 240)], str(tmp_path / "other.lake"))
    errors = refused(run, capsys, "--lake", str(tmp_path / "other.lake"))
    assert "cannot name other data" in errors
    assert "finetune --from lakeclip:" in errors
    shutil.copytree(pairs_lake, tmp_path / "moved.lake")
    resume(run, "--lake", str(tmp_path / "moved.lake"))
    assert read_checkpoint(run / LAST).lineage["parts"][-1]["changed"]["config.data.lake"][1].endswith("moved.lake")


def test_rate_and_batch_are_applied_and_recorded(run_at: Callable[[int], Path]) -> None:
    """After 9 steps of 32 pairs 120 rows of the epoch are left: 7 steps of 16, then 13 in the last epoch."""
    run, total = run_at(9), 9 + 7 + 13
    first = rates(run)
    resume(run, "--lr", "5e-4", "--batch-size", "16")
    found = rates(run)
    assert sorted(found) == list(range(total))
    for step, rate in found.items():
        if step < 9:
            assert rate == first[step]
        else:
            assert rate == pytest.approx(5e-4 / 2 * (1 + math.cos(math.pi * (step - 1) / (total - 1))), rel=1e-6)
    lineage = read_checkpoint(run / LAST).lineage
    assert lineage["progress"]["total_steps"] == total
    assert lineage["config"]["optimizer"]["lr"] == 5e-4
    segment = lineage["parts"][1]
    assert segment["step"] == 9
    assert segment["changed"] == {"config.optimizer.lr": [1e-3, 5e-4], "config.data.batch_size": [32, 16]}
    text = (run / "config.yaml").read_text()
    assert text.startswith("# from step 10: data.batch_size 32 → 16; optimizer.lr 0.001 → 0.0005\n")
    config = read_recipe(run / "config.yaml")
    assert (config.optimizer.lr, config.data.batch_size) == (5e-4, 16)


def test_a_longer_run_plans_its_curve_anew(run_at: Callable[[int], Path]) -> None:
    run = run_at(3 * EACH)
    resume(run, "--max-epochs", "4")
    found = rates(run)
    assert sorted(found) == list(range(4 * EACH))
    for step in range(3 * EACH, 4 * EACH):
        assert found[step] == pytest.approx(1e-3 / 2 * (1 + math.cos(math.pi * (step - 1) / (4 * EACH - 1))), rel=1e-6)


def test_the_epoch_begins_again_if_the_lake_has_grown(
    run_at: Callable[[int], Path], pairs_lake: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Add rows after three steps of the second epoch: it begins again, and the curve is planned for all steps."""
    run, lake, done = run_at(EACH + 3), tmp_path / "grown.lake", EACH + 3
    first, each = rates(run), 9  # 288 rows for training
    shutil.copytree(pairs_lake, lake)
    fill_lake([Samples("more", scene_samples(80, seed=3), 80)], str(lake), append=True)
    resume(run, "--lake", str(lake))
    assert ["a new epoch begins" in message for message in caplog.messages] == [True]
    found, total = rates(run), done + 2 * each
    assert sorted(found) == list(range(total))
    for step, rate in found.items():
        planned = 1e-3 / 2 * (1 + math.cos(math.pi * (step - 1) / (total - 1)))
        assert rate == (first[step] if step < done else pytest.approx(planned, rel=1e-6))
    lineage = read_checkpoint(run / LAST).lineage
    assert lineage["progress"]["total_steps"] == total
    assert [segment["step"] for segment in lineage["parts"]] == [0, done]


def test_a_complete_run_is_left_alone(run_at: Callable[[int], Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = run_at(3 * EACH)
    (run / "report.html").write_text("made before")
    before = snapshot(run)
    main(["train", "--resume", str(run), "--num-workers", "1"])
    assert "complete after 18 steps: nothing to train" in capsys.readouterr().out
    assert snapshot(run) == before
    assert "would change nothing" in refused(run, capsys, "--lr", "1e-4")


def test_a_run_that_is_still_running_is_not_resumed(
    run_at: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_at(17)
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); "
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        errors = refused(run, capsys)
        assert f"process {other.pid} trains it" in errors
        assert "still running" in errors
        other.communicate()
    resume(run)


def test_a_checkpoint_without_states_is_skipped(
    run_at: Callable[[int], Path], trained: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier version overwrote last.ckpt with empty states when a resume failed."""
    run = run_at(16)
    content = torch.load(run / LAST, weights_only=True)
    content["optimizer_states"][0]["state"] = {}
    torch.save(content, run / LAST)
    assert "without the optimiser's running averages" in refused(run, capsys)
    shutil.copy(trained / "checkpoints/step-00000015.ckpt", run / "checkpoints")
    resume(run)
    assert "resuming from" in caplog.text
    assert sorted(rates(run)) == list(range(3 * EACH))


def test_the_best_score_of_a_moved_run_is_kept(run_at: Callable[[int], Path], trained: Path) -> None:
    run = run_at(16)
    shutil.copy(trained / "checkpoints/best.ckpt", run / "checkpoints")
    content = torch.load(run / LAST, weights_only=True)
    (state,) = [state for key, state in content["callbacks"].items() if key.startswith("ModelCheckpoint")]
    score = torch.tensor(1e-6)
    state.update(best_model_score=score, kth_value=score, best_k_models={state["best_model_path"]: score})
    torch.save(content, run / LAST)
    best = (run / "checkpoints/best.ckpt").read_bytes()
    resume(run)
    assert (run / "checkpoints/best.ckpt").read_bytes() == best, "no later loss is better than 1e-6"
    after = torch.load(run / LAST, weights_only=True)["callbacks"]
    (state,) = [state for key, state in after.items() if key.startswith("ModelCheckpoint")]
    assert state["best_model_score"] == score
    assert state["best_model_path"] == str(run / "checkpoints/best.ckpt")


# ── failures while the run is restored ────────────────────────────────────────────────────────────────────────────


STAGES = (
    "resume_start",
    "restore_model",
    "restore_datamodule",
    "restore_callbacks",
    "restore_loops",
    "restore_optimizers",
    "restore_lr_schedulers",
)


@contextlib.contextmanager
def failing(stage: str, fail: Callable[[], object], *, is_done: bool) -> Iterator[None]:
    """Let something happen before or after one of Lightning's functions that restore a run."""
    restore = getattr(_CheckpointConnector, stage)

    def fail_around(connector: _CheckpointConnector, *args: Any, **named: Any) -> None:
        if is_done:
            restore(connector, *args, **named)
        fail()
        if not is_done:
            restore(connector, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_CheckpointConnector, stage, fail_around)
        yield


def fail_to_read() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_restore_that_fails_leaves_everything(run_at: Callable[[int], Path], stage: str, is_done: bool) -> None:
    run = run_at(8)
    before = snapshot(run)
    with failing(stage, fail_to_read, is_done=is_done), pytest.raises(OSError, match="Input/output error"):
        lakeclip.train(replace(read_recipe(run / "config.yaml")), resume=run)
    assert snapshot(run) == before


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_restoring_leaves_everything_and_the_run_resumes(run_at: Callable[[int], Path]) -> None:
    run = run_at(16)
    before = snapshot(run)
    with failing("restore_optimizers", interrupt, is_done=False), pytest.raises(SystemExit):
        main(["train", "--resume", str(run), "--lr", "1e-4"])
    assert snapshot(run) == before
    resume(run)
    assert sorted(rates(run)) == list(range(3 * EACH))


@pytest.mark.parametrize("stage", ["restore_loops", "resume_end"])
def test_sigterm_while_restoring_ends_the_run_with_a_complete_checkpoint(
    run_at: Callable[[int], Path], stage: str
) -> None:
    run = run_at(8)
    with (
        failing(stage, lambda: signal.raise_signal(signal.SIGTERM), is_done=True),
        pytest.raises(SystemExit) as stopped,
    ):
        main(["train", "--resume", str(run), "--lr", "1e-4"])
    assert stopped.value.code == 128 + signal.SIGTERM
    content = torch.load(run / LAST, weights_only=True)
    assert content["lakeclip"]["progress"]["step"] == 9
    states = content["optimizer_states"][0]["state"]
    assert states
    assert all(float(state["step"]) == 9 for state in states.values())


def test_sigterm_while_the_loader_is_made_is_not_lost(run_at: Callable[[int], Path]) -> None:
    """Lightning's own handler is installed then."""
    run = run_at(8)

    def stop(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_FitLoop, "_warn_if_modules_in_eval_mode", stop)
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--resume", str(run)])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert read_checkpoint(run / LAST).lineage["progress"]["step"] == 9


class SavesOnFailure(L.Callback):
    """Callback of a user that saves whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        try:
            trainer.save_checkpoint(self.path)
        except CheckpointError:
            self.refused = True


@pytest.mark.filterwarnings("ignore:Be aware that when using")
@pytest.mark.parametrize("stage", STAGES)
def test_no_checkpoint_is_written_of_what_is_not_restored(
    run_at: Callable[[int], Path], tmp_path: Path, stage: str, pairs_lake: Path, tiny_models: Path
) -> None:
    """Checks a user's own Trainer, whose callbacks lakeclip does not know."""
    run = run_at(8)
    config = read_recipe(run / "config.yaml")
    sizes = check_train(config)
    data = build_datamodule(config.data, sizes.image_resolution, Tokenizer())
    callback = SavesOnFailure(tmp_path / "broken.ckpt")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with failing(stage, fail_to_read, is_done=False), pytest.raises(OSError, match="Input/output"):
        trainer.fit(build_module(config, sizes), datamodule=data, ckpt_path=run / LAST, weights_only=True)
    if stage != "resume_start":  # before that, nobody has asked for a restore
        assert callback.refused
        assert not callback.path.exists()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_folder_that_cannot_be_written(
    run_at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 300) as disk:
        run = shutil.copytree(run_at(8), disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "cannot be written" in refused(run, capsys, "--lr", "1e-4")


def test_a_disk_too_full_for_the_checkpoints(
    run_at: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_at(8)
    size = sum(len(content) for content in snapshot(run).values())
    with small_disk(tmp_path / "disk", size // 10**6 + 5) as disk:
        copy = shutil.copytree(run, disk / "run")
        assert "too full" in refused(copy, capsys, "--max-epochs", "5")


def test_every_setting_has_a_rule_and_a_line_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/guides/resume.md").read_text()

    def paths(kind: Any, prefix: str = "") -> Iterator[str]:
        for field in fields(kind):
            value = getattr(kind, field.name)
            yield from paths(value, f"{field.name}.") if is_dataclass(value) else [prefix + field.name]

    for path in {*paths(TrainConfig()), *paths(FinetuneConfig())}:
        is_known = path in (*FIXED, *BY_CONTENT, *APPLIED) or is_operational(path)
        assert is_known, f"{path}: decide in lakeclip/training/resume/settings.py what a resume does with it"
        is_listed = f"`{flag(path)}`" in guide or path.startswith(("evaluation.", "keep.keep_"))
        assert is_listed, f"docs/guides/resume.md does not say what a resume does with {flag(path)}"
