"""Scores during training reach the callbacks of a user's own Trainer, and its loggers once."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lakeclip
from lakeclip.errors import ConfigError
from lakeclip.training.callbacks.evaluation import EvaluationCallback
from tests.unit.training.test_module import pairs, wrapper
from tests.unit.training.test_own_trainer import custom, custom_pairs

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|val_dataloader|LeafSpec|not empty|.*pre-optimization)"
)


def scores(lake: Path, *, every: int | None, **settings: Any) -> EvaluationCallback:
    config = lakeclip.EvaluationConfig(
        eval_lake=str(lake), eval_label_column="label", eval_rows=40, eval_every_steps=every
    )
    return EvaluationCallback(config, **settings)


def trainer(folder: Path, callbacks: list[Any], **settings: Any) -> L.Trainer:
    logger = CSVLogger(folder, name="", version="")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=logger, callbacks=callbacks, **{**quiet, **settings}
    )


def logged(folder: Path) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        found = [(int(row["step"]), row.get("eval/zeroshot_top1")) for row in csv.DictReader(file)]
    return [(step, float(value)) for step, value in found if value]


def test_a_checkpoint_is_kept_by_the_score(pairs_lake: Path, tmp_path: Path) -> None:
    callback = scores(pairs_lake, every=2)
    best = ModelCheckpoint(
        tmp_path / "best", monitor="eval/zeroshot_top1", mode="max", every_n_train_steps=2, save_top_k=-1
    )
    fit = trainer(tmp_path, [best, callback], max_steps=6)
    fit.fit(wrapper(), pairs(12, 2))
    assert [step for step, _ in logged(tmp_path)] == [1, 3, 5], "each score once"
    assert float(fit.callback_metrics["eval/zeroshot_top1"]) == pytest.approx(callback.latest["zeroshot_top1"])
    assert sorted(map(float, best.best_k_models.values())) == pytest.approx(
        sorted(value for _, value in logged(tmp_path))
    )


@pytest.mark.parametrize("has_validation", [True, False])
def test_a_monitored_score_is_that_of_the_epochs_end(has_validation: bool, pairs_lake: Path, tmp_path: Path) -> None:
    """The schedule's next evaluation is far away; what compares the scores gets one of the weights of now."""
    callback = scores(pairs_lake, every=1000)
    stop = EarlyStopping("eval/zeroshot_top1", mode="max", patience=0)
    best = ModelCheckpoint(tmp_path / "best", monitor="eval/zeroshot_top1", mode="max")
    fit = trainer(tmp_path, [stop, best, callback], max_epochs=3)
    fit.fit(wrapper(lr=1e-9), pairs(4, 2), pairs(4, 2) if has_validation else None)
    assert fit.current_epoch == 2, "the second epoch is no better, and ends the run"
    assert [step for step, _ in logged(tmp_path)] == [1, 3]
    assert best.best_model_path


def test_own_towers_need_a_tokenizer_for_their_scores(pairs_lake: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer[\s\S]*tokenizer=YOUR_TOKENIZER"):
        trainer(tmp_path, [scores(pairs_lake, every=1)], max_steps=1).fit(custom(), custom_pairs(4, 4))
    callback = scores(pairs_lake, every=1)
    module = custom(tokenizer=lambda texts: lakeclip.tokenize(texts, 16) % 49)
    trainer(tmp_path, [callback], max_steps=1).fit(module, custom_pairs(4, 4))
    assert 0 <= callback.latest["zeroshot_top1"] <= 1
