"""Evaluation during training: its scores, its schedule, and that it does not affect training; and trackers."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.checkpoints.layouts import load
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.config.schema import (
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import ConfigError, DataError, LakeError, OutputError
from lakeclip.evaluation.evaluator import Evaluator
from lakeclip.models.clip import CLIP
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training import loggers
from lakeclip.training.callbacks.evaluation import TIME_SHARE, EvaluationCallback, next_step
from lakeclip.training.run import TrainResult, train
from tests.conftest import TINY
from tests.integration.processes import run_on_processes
from tests.unit.training.test_guard import batches
from tests.unit.training.test_module import trainer, wrapper

ALL = ("zeroshot", "retrieval", "probe", "robustness")

pytestmark = pytest.mark.filterwarnings("ignore:.*(val_dataloader|many workers|logging interval|MLFlow only allows)")


def config(lake: Path, models: Path, runs: Path, name: str) -> TrainConfig:
    return TrainConfig(
        model="tiny-vit",
        model_config=str(models),
        data=DataConfig(lake=str(lake), batch_size=16, num_workers=0, val_fraction=0.1),
        optimizer=OptimizerConfig(lr=1e-3),
        trainer=TrainerConfig(max_steps=6, accelerator="cpu", runs=str(runs), name=name),
    )


def scored(lake: Path, **more: object) -> EvaluationConfig:
    settings = {"eval_label_column": "label", "eval_scores": ALL, "eval_rows": 150, **more}
    return EvaluationConfig(eval_lake=str(lake), **settings)  # type: ignore[arg-type]


def rows(run: TrainResult) -> list[dict[str, str]]:
    with (run.folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("eval/zeroshot_top1")]


def weights(run: TrainResult) -> dict[str, torch.Tensor]:
    return read_checkpoint(run.folder / "checkpoints/last.ckpt").state_dict


@pytest.mark.slow
def test_scores_equal_those_of_the_checkpoint_and_do_not_affect_training(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Score the average of the weights, which is also what the checkpoint holds."""
    plain = config(pairs_lake, tiny_models, tmp_path, "plain")
    plain = replace(plain, optimizer=replace(plain.optimizer, ema_decay=0.5))
    without = train(plain)
    wanted = scored(pairs_lake, eval_every_steps=2)
    with_scores = replace(plain, evaluation=wanted, trainer=replace(plain.trainer, name="scored"))
    found = train(with_scores)
    first, second = weights(without), weights(found)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [int(row["step"]) for row in rows(found)] == [1, 3, 5], "steps count from 0, as Lightning's do"
    model, tokenize, transform = load(found.folder / "checkpoints/last.ckpt")
    again = Evaluator(wanted).score(model, tokenize, transform)
    assert again == pytest.approx(found.scores)
    last = rows(found)[-1]
    assert all(float(last[f"eval/{name}"]) == pytest.approx(value) for name, value in again.items())
    assert set(again) >= {
        "zeroshot_top1",
        "zeroshot_top5",
        "zeroshot_mean_per_class",
        "probe_top1",
        "text_to_image_R@5",
    }
    assert 0 < found.evaluation < 1
    assert not without.scores
    # A resumed run keeps the schedule.
    further = replace(with_scores, trainer=replace(with_scores.trainer, max_steps=9))
    assert [int(row["step"]) for row in rows(train(further, resume=found.folder))] == [1, 3, 5, 7, 8]


def test_default_schedule_takes_a_small_share_and_ends_with_the_run(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path
) -> None:
    plain = config(pairs_lake, tiny_models, tmp_path, "run")
    run = train(replace(plain, evaluation=scored(pairs_lake, eval_scores=("zeroshot",), eval_rows=20)))
    steps = [int(row["step"]) for row in rows(run)]
    assert steps[-1] == 5
    assert len(steps) <= 2


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.floats(1e-6, 1e3))
def test_next_step_is_the_first_within_the_time_share(step: int, seconds: float, a_step: float) -> None:
    due = next_step(step, seconds, a_step)
    assert due > step
    assert seconds <= TIME_SHARE * (due - step) * a_step * (1 + 1e-9)
    assert due == step + 1 or seconds > TIME_SHARE * (due - step - 1) * a_step * (1 - 1e-9), "and no later"


def score_on_rank(rank: int, world: int, lake: Path, folder: Path) -> None:
    torch.manual_seed(0)
    model, tokenize = CLIP(TINY), Tokenizer(TINY.context_length)
    scores = Evaluator(scored(lake, eval_rows=149)).score(model, tokenize, EvalTransform(TINY.image_resolution))
    (folder / f"{world}-{rank}.json").write_text(json.dumps(scores))


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(pairs_lake: Path, tmp_path: Path) -> None:
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        run_on_processes(score_on_rank, world, tmp_path / str(world), pairs_lake, tmp_path)
    single, *pair = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert pair[0] == pair[1] == pytest.approx(single)


def test_invalid_evaluations_are_reported_before_the_run(pairs_lake: Path, pairs_folder: Path) -> None:
    with pytest.raises(ConfigError, match="an evaluation during training needs a lake of images"):
        EvaluationConfig(eval_label_column="label")
    with pytest.raises(ConfigError, match="needs labels"):
        Evaluator(EvaluationConfig(eval_lake=str(pairs_lake)))
    with pytest.raises(ConfigError, match="no evaluation 'zero-shot'") as error:
        Evaluator(scored(pairs_lake, eval_scores=("zero-shot",)))
    assert error.value.allowed == "zeroshot, probe, robustness, retrieval"
    with pytest.raises(LakeError, match="no column 'colour'"):
        Evaluator(scored(pairs_lake, eval_label_column="colour"))
    with pytest.raises(DataError, match="too few of each class"):
        Evaluator(scored(pairs_lake, eval_rows=21))


def test_unreadable_lake_skips_the_scores_and_not_the_run(
    pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = EvaluationCallback(scored(pairs_lake, eval_every_steps=1))

    def gone(*_: object, **__: object) -> None:
        raise LakeError("the server of the lake is unavailable")

    monkeypatch.setattr(callback.evaluator.rows.source, "read", gone)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[callback])
    fit.fit(wrapper("tiny-vit"), batches(3))
    assert fit.global_step == 3
    assert "no scores at step 2: the server of the lake is unavailable" in capsys.readouterr().err
    assert not callback.latest


# ── trackers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_trackers_get_the_curves_and_resumed_runs_keep_their_id(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use the real trackers: Weights & Biases offline, MLflow with a file."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plain = config(pairs_lake, tiny_models, tmp_path, "run")
    tracked = replace(plain, trainer=replace(plain.trainer, max_steps=3, track=("wandb", "mlflow")))
    run = train(tracked)
    names = json.loads((run.folder / loggers.TRACKER_IDS).read_text())
    assert (run.folder / "wandb" / "latest-run" / f"run-{names['wandb']}.wandb").stat().st_size > 0
    assert not (run.folder / "tensorboard").exists(), "it was not asked for"
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    there = client.get_run(names["mlflow"])
    assert there.data.params["data/batch_size"] == "16"
    assert there.info.run_name == "run"
    losses = client.get_metric_history(names["mlflow"], "train/loss")
    assert [point.step for point in losses] == [0, 1, 2]
    train(replace(tracked, trainer=replace(tracked.trainer, max_steps=5)), resume=run.folder)
    assert json.loads((run.folder / loggers.TRACKER_IDS).read_text()) == names
    assert len(client.get_metric_history(names["mlflow"], "train/loss")) == 5
    (run.folder / "config.yaml").read_text()


def test_missing_tracker_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        loggers.check_trackers(["tensorboard", "wandb"])
    loggers.check_trackers(["tensorboard"])


def test_unreachable_tracker_is_reported_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OutputError, match="mlflow refuses to start the run"):
        loggers.make_loggers(["mlflow"], tmp_path, {})
