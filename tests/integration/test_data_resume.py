"""Test that interrupted and resumed Lightning runs see exactly the remaining rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lakeclip.data.datamodule import PairDataModule
from lakeclip.types import Batch
from tests.unit.data.memory_source import MemorySource

NUM_ROWS, BATCH_SIZE = 43, 4  # ten steps an epoch, three rows left over


class PowerFailureError(Exception):
    """A simulated power failure."""


class Recorder(L.LightningModule):
    """A module that learns nothing and records its rows; it fails in step `fail_in` or after step `fail_after`."""

    def __init__(self, *, manual: bool, fail_in: int | None, fail_after: int | None, checkpoint: Path | None) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fail_in, self.fail_after, self.checkpoint = fail_in, fail_after, checkpoint
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        assert batch.images.dtype == torch.uint8
        if self.trainer.global_step == self.fail_in:
            raise PowerFailureError
        self.seen.append(batch.rows.tolist())
        loss = self.weight.sum() ** 2
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.fail_after:
            if self.checkpoint:
                self.trainer.save_checkpoint(self.checkpoint)
            raise PowerFailureError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ValidatedRecorder(Recorder):
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated += batch.rows.tolist()


def fit(
    folder: Path,
    *,
    resume: Path | None = None,
    manual: bool = True,
    fail_in: int | None = None,
    fail_after: int | None = None,
    save_at: int | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[list[list[int]], PairDataModule, Recorder]:
    """Train for two epochs or until the simulated failure; return the rows of each step, the data and the model."""
    datamodule = PairDataModule(
        MemorySource(NUM_ROWS, captions=2), image_size=8, **{"batch_size": BATCH_SIZE, **(data or {})}
    )
    kind = ValidatedRecorder if datamodule.has_validation else Recorder
    model = kind(manual=manual, fail_in=fail_in, fail_after=fail_after, checkpoint=folder / "interrupted.ckpt")
    callbacks = (
        [ModelCheckpoint(folder, filename="saved", every_n_train_steps=save_at, save_top_k=1)] if save_at else []
    )
    trainer = L.Trainer(
        **{"max_epochs": 2, **options},
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    if fail_in is None and fail_after is None:
        trainer.fit(model, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    else:
        with pytest.raises(PowerFailureError):
            trainer.fit(model, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    return model.seen, datamodule, model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    seen, datamodule, _ = fit(tmp_path_factory.mktemp("uninterrupted"))
    assert datamodule.samples_seen == 80
    return seen


def test_an_epoch_is_every_row_once_but_for_an_incomplete_batch(uninterrupted):
    first, second = uninterrupted[:10], uninterrupted[10:]
    for epoch in (first, second):
        assert len({row for batch in epoch for row in batch}) == 40
    assert first != second


@pytest.mark.parametrize("manual", [True, False], ids=["manual", "automatic"])
@pytest.mark.parametrize("step", [1, 4, 9, 10, 13, 19])
def test_interrupted_after_a_step_and_resumed(tmp_path, uninterrupted, step, manual):
    before, _, _ = fit(tmp_path, manual=manual, fail_after=step)
    after, datamodule, _ = fit(tmp_path, manual=manual, resume=tmp_path / "interrupted.ckpt")
    assert before + after == uninterrupted
    assert datamodule.samples_seen == 80


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*:UserWarning")
@pytest.mark.parametrize(("saved", "failed"), [(3, 3), (3, 5), (7, 12), (10, 10), (10, 11)])
def test_interrupted_later_than_the_last_checkpoint(tmp_path, uninterrupted, saved, failed):
    fit(tmp_path, manual=False, save_at=saved, fail_in=failed)
    after, _, _ = fit(tmp_path, manual=False, resume=tmp_path / "saved.ckpt")
    assert after == uninterrupted[saved:]


@pytest.mark.parametrize("step", [4, 10, 12])
def test_with_a_number_of_steps_instead_of_epochs(tmp_path, uninterrupted, step):
    """Check `max_steps`: Lightning then always assumes to be in the middle of an epoch."""
    options = {"max_epochs": -1, "max_steps": 17}
    before, _, _ = fit(tmp_path, fail_after=step, **options)
    after, _, _ = fit(tmp_path, resume=tmp_path / "interrupted.ckpt", **options)
    assert before + after == uninterrupted[:17]


def test_with_worker_processes(tmp_path, uninterrupted):
    data = {"num_workers": 2}
    before, _, _ = fit(tmp_path, fail_after=6, data=data)
    after, _, _ = fit(tmp_path, resume=tmp_path / "interrupted.ckpt", data=data)
    assert before + after == uninterrupted


def test_with_validation_within_the_epoch(tmp_path):
    options = {"val_check_interval": 3, "data": {"val_fraction": 0.2}}
    full, datamodule, model = fit(tmp_path, **options)
    rounds = len(model.validated) // datamodule.num_val_rows
    assert rounds == 2 * (datamodule.steps_per_epoch // 3)
    assert len(set(model.validated)) == datamodule.num_val_rows
    assert not set(model.validated) & {row for batch in full for row in batch}
    for step in (2, 3, 4):
        before, _, _ = fit(tmp_path, fail_after=step, **options)
        after, _, _ = fit(tmp_path, resume=tmp_path / "interrupted.ckpt", **options)
        assert before + after == full


def test_another_batch_size_resumes_at_the_same_sample(tmp_path, uninterrupted):
    """Check a new global batch size, which also stands for another number of devices."""
    before, _, _ = fit(tmp_path, fail_after=4)
    after, datamodule, _ = fit(
        tmp_path, resume=tmp_path / "interrupted.ckpt", data={"batch_size": 8}, max_steps=9, max_epochs=-1
    )
    stream = [row for batch in uninterrupted[:10] for row in batch]
    resumed = [row for batch in after for row in batch]
    assert resumed[:24] == stream[16:40]
    assert len({row for batch in before for row in batch} | set(resumed[:24])) == 40
    assert datamodule.samples_seen == 16 + 5 * 8


def test_limited_epochs(tmp_path, uninterrupted):
    full, _, _ = fit(tmp_path, limit_train_batches=4)
    assert full == uninterrupted[:4] + uninterrupted[10:14]
    before, _, _ = fit(tmp_path, limit_train_batches=4, fail_after=6)
    after, _, _ = fit(tmp_path, limit_train_batches=4, resume=tmp_path / "interrupted.ckpt")
    assert before + after == full


def test_accumulated_gradients(tmp_path, uninterrupted):
    options = {"manual": False, "accumulate_grad_batches": 4}  # steps of 4, 4 and 2 batches
    assert fit(tmp_path, **options)[0] == uninterrupted
    before, _, _ = fit(tmp_path, fail_after=4, **options)
    after, _, _ = fit(tmp_path, resume=tmp_path / "interrupted.ckpt", **options)
    assert before + after == uninterrupted
