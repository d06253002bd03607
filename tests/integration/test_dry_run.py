"""`lakeclip train --dry-run`: a plan from profiled steps, which leaves nothing behind."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lakeclip.cli.app import main
from lakeclip.config.schema import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.training.dry_run.plan import make_plan
from lakeclip.training.dry_run.warnings import plan_warnings
from tests.integration.test_train import start, train_args


def test_dry_run_prints_a_plan_and_leaves_no_files(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    before = sorted(path.name for path in pairs_lake.rglob("*"))
    with start([*train_args(pairs_lake, tiny_models, runs, "a", "--max-epochs", "2"), "--dry-run"]) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert errors == ""
    assert "tiny-vit: 3." in output
    assert "held out for validation" in output
    assert "ln 8 = 2.079" in output
    assert "warning: the run has only" in output
    assert "this was a dry run" in output
    assert list(tmp_path.iterdir()) == [], "the runs folder was not created"
    assert sorted(path.name for path in pairs_lake.rglob("*")) == before


def plan_config(pairs_lake: Path, tiny_models: Path, trainer: TrainerConfig, **data: object) -> TrainConfig:
    settings = {"lake": str(pairs_lake), "batch_size": 8, "num_workers": 0, "val_fraction": 0.1, **data}
    return TrainConfig(
        model="tiny-vit",
        model_config=str(tiny_models),
        data=DataConfig(**settings),  # type: ignore[arg-type]
        trainer=replace(trainer, accelerator="cpu"),
    )


def test_plan_has_the_numbers_of_the_run(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    trainer = TrainerConfig(max_epochs=9, runs=str(tmp_path))
    plan = make_plan(plan_config(pairs_lake, tiny_models, trainer, query="NSFW == 'UNLIKELY'"))
    assert (plan.rows, plan.kept) == (240, 180)
    assert plan.kept - plan.held_out == plan.batches_per_epoch * 8 + (plan.kept - plan.held_out) % 8
    assert plan.steps == 9 * plan.batches_per_epoch
    assert plan.warmup == plan.steps // 10
    assert plan.footprint.weights == plan.footprint.gradients == 4 * plan.parameters
    assert plan.footprint.states == pytest.approx(8 * plan.parameters, rel=1e-3)
    assert plan.footprint.program > 0
    assert abs(plan.first_loss - math.log(8)) < 1
    assert plan.mfu is not None
    assert 0 < plan.mfu < 1.2
    assert plan.rate < min(plan.step_rate, plan.loader_rate), "without workers step and loader alternate"


def test_plan_accounts_for_micro_batches_and_devices(pairs_folder: Path, tiny_models: Path, tmp_path: Path) -> None:
    trainer = TrainerConfig(max_steps=5, minibatch_size=3, devices=2, runs=str(tmp_path))
    plan = make_plan(plan_config(pairs_folder, tiny_models, trainer, lake=None, folder=str(pairs_folder)))
    assert (plan.global_batch, plan.embedded, plan.steps) == (16, 3, 5)
    assert plan.rate == pytest.approx(2 / (1 / plan.step_rate + 1 / plan.loader_rate))


def test_plan_warns_about_a_warmup_longer_than_the_run(pairs_lake: Path, tiny_models: Path, tmp_path: Path) -> None:
    config = plan_config(pairs_lake, tiny_models, TrainerConfig(max_steps=250, runs=str(tmp_path)))
    plan = make_plan(replace(config, optimizer=OptimizerConfig(warmup_steps=400)))
    assert any("warm-up is longer" in warning.what for warning in plan_warnings(plan))


@pytest.mark.parametrize("flags", [("--batch-size", "1000"), ("--devices", "100")], ids=["batch", "devices"])
def test_dry_run_refuses_an_impossible_run(
    flags: tuple[str, str], pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*train_args(pairs_lake, tiny_models, tmp_path, "a"), *flags, "--dry-run"])
    assert stopped.value.code == 2
    assert "too large" in capsys.readouterr().err
