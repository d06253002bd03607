"""Scores while training: what they say, when they are taken, and that training does not notice; and trackers."""

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
from lakeclip.models.clip import CLIP
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.run import FinishedRun, train
from lakeclip.training.watching import loggers
from lakeclip.training.watching.examination import Examination
from lakeclip.training.watching.scores import SHARE, EvaluationCallback, next_step
from tests.conftest import TINY
from tests.integration.processes import on_processes
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


def rows(run: FinishedRun) -> list[dict[str, str]]:
    with (run.folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("eval/zeroshot_top1")]


def weights(run: FinishedRun) -> dict[str, torch.Tensor]:
    return read_checkpoint(run.folder / "checkpoints/last.ckpt").state_dict


def test_scores_are_those_of_the_weights_and_training_does_not_notice(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The average of the weights is what is scored where there is one, and what is saved."""
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
    again = Examination(wanted).take(model, tokenize, transform)
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
    # A run that goes on keeps to the schedule.
    further = replace(with_scores, trainer=replace(with_scores.trainer, max_steps=9))
    assert [int(row["step"]) for row in rows(train(further, resume=found.folder))] == [1, 3, 5, 7, 8]


def test_by_default_scores_take_a_small_share_and_come_at_the_end(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path
) -> None:
    plain = config(pairs_lake, tiny_models, tmp_path, "run")
    run = train(replace(plain, evaluation=scored(pairs_lake, eval_scores=("zeroshot",), eval_rows=20)))
    steps = [int(row["step"]) for row in rows(run)]
    assert steps[-1] == 5
    assert len(steps) <= 2


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.floats(1e-6, 1e3))
def test_the_next_scores_are_due_once_they_have_been_earned(step: int, seconds: float, a_step: float) -> None:
    due = next_step(step, seconds, a_step)
    assert due > step
    assert seconds <= SHARE * (due - step) * a_step * (1 + 1e-9)
    assert due == step + 1 or seconds > SHARE * (due - step - 1) * a_step * (1 - 1e-9), "and no later"


def take(rank: int, world: int, lake: Path, folder: Path) -> None:
    torch.manual_seed(0)
    model, tokenize = CLIP(TINY), Tokenizer(TINY.context_length)
    scores = Examination(scored(lake, eval_rows=149)).take(model, tokenize, EvalTransform(TINY.image_resolution))
    (folder / f"{world}-{rank}.json").write_text(json.dumps(scores))


def test_processes_score_together_what_one_scores_alone(pairs_lake: Path, tmp_path: Path) -> None:
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        on_processes(take, world, tmp_path / str(world), pairs_lake, tmp_path)
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert two[0] == two[1] == pytest.approx(one)


def test_what_cannot_be_scored_is_said_before_the_run(pairs_lake: Path, pairs_folder: Path) -> None:
    with pytest.raises(ConfigError, match="scores while training need images"):
        EvaluationConfig(eval_label_column="label")
    with pytest.raises(ConfigError, match="need labels"):
        EvaluationConfig(eval_lake=str(pairs_lake))
    with pytest.raises(LakeError, match="no column 'colour'"):
        Examination(scored(pairs_lake, eval_label_column="colour"))
    with pytest.raises(DataError, match="too few of each class"):
        Examination(scored(pairs_lake, eval_rows=21))


def test_a_lake_that_goes_away_costs_the_scores_and_not_the_run(
    pairs_lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = EvaluationCallback(scored(pairs_lake, eval_every_steps=1))

    def gone(*_: object) -> None:
        raise LakeError("the server of the lake is away")

    monkeypatch.setattr(callback.examination.source, "read", gone)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[callback])
    fit.fit(wrapper("tiny-vit"), batches(3))
    assert fit.global_step == 3
    assert "no scores at step 2: the server of the lake is away" in capsys.readouterr().err
    assert not callback.latest


# ── trackers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_trackers_get_the_curves_and_a_resumed_run_is_the_same_one(
    pairs_lake: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real ones: Weights & Biases without a network, MLflow in a file."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plain = config(pairs_lake, tiny_models, tmp_path, "run")
    tracked = replace(plain, trainer=replace(plain.trainer, max_steps=3, track=("wandb", "mlflow")))
    run = train(tracked)
    names = json.loads((run.folder / loggers.TRACKED).read_text())
    assert (run.folder / "wandb" / "latest-run" / f"run-{names['wandb']}.wandb").stat().st_size > 0
    assert not (run.folder / "tensorboard").exists(), "it was not asked for"
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    there = client.get_run(names["mlflow"])
    assert there.data.params["data/batch_size"] == "16"
    assert there.info.run_name == "run"
    losses = client.get_metric_history(names["mlflow"], "train/loss")
    assert [one.step for one in losses] == [0, 1, 2]
    train(replace(tracked, trainer=replace(tracked.trainer, max_steps=5)), resume=run.folder)
    assert json.loads((run.folder / loggers.TRACKED).read_text()) == names
    assert len(client.get_metric_history(names["mlflow"], "train/loss")) == 5
    (run.folder / "config.yaml").read_text()


def test_a_tracker_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        loggers.check_trackers(["tensorboard", "wandb"])
    loggers.check_trackers(["tensorboard"])


def test_a_tracker_that_does_not_answer_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OutputError, match="mlflow does not let the run begin"):
        loggers.make_loggers(["mlflow"], tmp_path, {})
