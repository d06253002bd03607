"""Throughput: time spent training and waiting for data, MFU, and peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lakeclip.training.callbacks import throughput
from lakeclip.training.callbacks.throughput import Speed, Throughput
from lakeclip.training.memory import peak_memory, reset_peak_memory
from tests.unit.training.test_module import pairs, wrapper

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|val_dataloader|LeafSpec|batch_size|not resumable|weights_only)"
)
BATCH = 4


class Clock:
    """Clock whose time advances only in `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of `throughput` and of the loaders and models in this file."""
    clock = Clock()
    for module in (throughput, sys.modules[__name__]):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Loader:
    """Loader whose batches take a given time."""

    def __init__(self, num: int, seconds: float) -> None:
        self.num, self.seconds = num, seconds

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.num):
            time.sleep(self.seconds)
            yield torch.ones(BATCH, 2), torch.ones(BATCH, 1)


class Sleeper(L.LightningModule):
    """Module whose training and validation steps take a given time."""

    def __init__(self, step: float = 0.0, validation: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.step, self.validation = step, validation

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(self.step)
        loss: Tensor = (self.layer(batch[0]) - batch[1]).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(self.validation)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def speed_of(module: L.LightningModule, loader: Any, folder: Path, **settings: Any) -> Speed:
    callback = Throughput()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[callback],
        **{"max_epochs": 1, "enable_checkpointing": False, **quiet, **settings},
    )
    trainer.fit(module, loader)
    average = callback.average()
    assert average is not None
    return average


def test_a_slow_loader_counts_as_waiting(tmp_path: Path, clock: Clock) -> None:
    speed = speed_of(Sleeper(), Loader(10, 0.1), tmp_path)
    assert 0.6 < speed.data_wait <= 1
    assert speed.rate < BATCH / 0.1


def test_a_slow_model_does_not_wait(tmp_path: Path, clock: Clock) -> None:
    speed = speed_of(Sleeper(step=0.1), Loader(10, 0.0), tmp_path)
    assert 0 <= speed.data_wait < 0.3
    assert speed.rate < BATCH / 0.1


def test_equal_times_of_step_and_loader_give_half(tmp_path: Path, clock: Clock) -> None:
    speed = speed_of(Sleeper(step=0.1), Loader(10, 0.1), tmp_path)
    assert 0.35 < speed.data_wait < 0.65


def test_validation_and_checkpoints_are_not_counted(tmp_path: Path, clock: Clock) -> None:
    """0.3 s of validation and 0.3 s of saving for every 0.05 s of training."""

    class Slow(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "checkpoint")
            time.sleep(0.3)

    callback = Throughput()
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[callback, Slow()],
        val_check_interval=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Sleeper(step=0.05, validation=0.3), Loader(6, 0.0), Loader(1, 0.0))
    average = callback.average()
    assert average is not None
    assert average.rate > 0.3 * BATCH / 0.05
    assert average.data_wait < 0.3


def test_waiting_is_counted_in_every_epoch(tmp_path: Path, clock: Clock) -> None:
    speed = speed_of(Sleeper(step=0.02), Loader(2, 0.1), tmp_path, max_epochs=4)
    assert 0.5 < speed.data_wait <= 1


def test_clip_has_an_mfu(tmp_path: Path) -> None:
    speed = speed_of(wrapper(lr=1e-3), pairs(16, 8), tmp_path, max_epochs=2)
    assert speed.mfu is not None
    assert 0 < speed.mfu < 1.2


def test_other_models_have_no_mfu(tmp_path: Path) -> None:
    speed = speed_of(Sleeper(), Loader(3, 0.0), tmp_path)
    assert speed.mfu is None
    assert "FLOP" not in str(speed)


def test_every_logged_row_has_the_figures_after_a_resume_too(tmp_path: Path) -> None:
    """The figures are logged only for the steps that Lightning writes."""
    for name, steps, checkpoint in (("first", 8, None), ("second", 20, tmp_path / "checkpoint")):
        trainer = L.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            callbacks=[Throughput()],
            logger=CSVLogger(tmp_path, name=name, version=""),
            log_every_n_steps=3,
            max_steps=steps,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Sleeper(), Loader(10, 0.0), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "checkpoint")
    rows = {name: (tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("first", "second")}
    assert [row.split(",")[1] for row in rows["first"][1:]] == ["2", "5"]
    assert [row.split(",")[1] for row in rows["second"][1:]] == ["8", "11", "14", "17"]
    assert all("," in row and "" not in row.split(",") for name in rows for row in rows[name])
    assert "train/data_wait" in rows["second"][0]


def test_peak_memory_is_measured_and_reset() -> None:
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    large = torch.ones(100_000_000)
    held = peak_memory(cpu)
    assert held >= before + 0.2e9 or held >= 0.4e9
    del large
    reset_peak_memory(cpu)
    assert peak_memory(cpu) < held - 0.3e9
