"""What the run says of its speed: what is waiting, what is work, and what is neither."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lakeclip.training.watching.memory import forget_peak, peak_memory
from lakeclip.training.watching.throughput import Speed, Throughput
from tests.unit.training.test_module import pairs, wrapper

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|val_dataloader|LeafSpec|batch_size|not resumable|weights_only)"
)
BATCH = 4


class Loader:
    """Batches that take a while."""

    def __init__(self, num: int, seconds: float) -> None:
        self.num, self.seconds = num, seconds

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.num):
            time.sleep(self.seconds)
            yield torch.ones(BATCH, 2), torch.ones(BATCH, 1)


class Sleeper(L.LightningModule):
    """A step and a validation that take a while; nothing else."""

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
    throughput = Throughput()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[throughput],
        **{"max_epochs": 1, "enable_checkpointing": False, **quiet, **settings},
    )
    trainer.fit(module, loader)
    average = throughput.average()
    assert average is not None
    return average


def test_a_slow_loader_is_waited_for(tmp_path: Path) -> None:
    speed = speed_of(Sleeper(), Loader(10, 0.1), tmp_path)
    assert 0.6 < speed.data_wait <= 1
    assert speed.rate < BATCH / 0.1


def test_a_slow_model_waits_for_nothing(tmp_path: Path) -> None:
    speed = speed_of(Sleeper(step=0.1), Loader(10, 0.0), tmp_path)
    assert 0 <= speed.data_wait < 0.3
    assert speed.rate < BATCH / 0.1


def test_half_and_half_is_half(tmp_path: Path) -> None:
    speed = speed_of(Sleeper(step=0.1), Loader(10, 0.1), tmp_path)
    assert 0.35 < speed.data_wait < 0.65


def test_validation_and_checkpoints_are_neither_work_nor_waiting(tmp_path: Path) -> None:
    """With 0.3 s of validation and 0.3 s of writing for every 0.05 s of work."""

    class Slow(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "checkpoint")
            time.sleep(0.3)

    throughput = Throughput()
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[throughput, Slow()],
        val_check_interval=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Sleeper(step=0.05, validation=0.3), Loader(6, 0.0), Loader(1, 0.0))
    average = throughput.average()
    assert average is not None
    assert average.rate > 0.3 * BATCH / 0.05
    assert average.data_wait < 0.3


def test_the_epochs_after_the_first_are_counted_too(tmp_path: Path) -> None:
    speed = speed_of(Sleeper(step=0.02), Loader(2, 0.1), tmp_path, max_epochs=4)
    assert 0.5 < speed.data_wait <= 1


def test_clip_says_its_utilisation(tmp_path: Path) -> None:
    speed = speed_of(wrapper(lr=1e-3), pairs(16, 8), tmp_path, max_epochs=2)
    assert speed.mfu is not None
    assert 0 < speed.mfu < 1.2


def test_without_a_clip_there_is_no_utilisation(tmp_path: Path) -> None:
    speed = speed_of(Sleeper(), Loader(3, 0.0), tmp_path)
    assert speed.mfu is None
    assert "FLOP" not in str(speed)


def test_each_row_of_the_curves_has_the_figures_after_a_resume_too(tmp_path: Path) -> None:
    """Though they are logged only for the steps that are written."""
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


def test_the_peak_of_memory_is_found_and_can_be_forgotten() -> None:
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    large = torch.ones(100_000_000)
    held = peak_memory(cpu)
    assert held >= before + 0.2e9 or held >= 0.4e9
    del large
    forget_peak(cpu)
    assert peak_memory(cpu) < held - 0.3e9
