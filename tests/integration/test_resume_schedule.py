"""Learning rate, data and length of resumed runs: two settings changed at any step, compared with the documented rule.

The expectation is computed here by walking through the data step by step, not by lakeclip's functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback

from lakeclip.config.schema import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.training.module import CLIPWrapper
from lakeclip.training.trainer import make_trainer, quiet_lightning
from tests.conftest import TINY
from tests.unit.data.memory_source import MemorySource

ROWS = 40
pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|val_dataloader|LeafSpec|state key|callbacks used)")


@dataclass(frozen=True)
class Settings:
    """Settings of a run that affect its schedule."""

    batch: int = 4
    accumulate: int = 1
    epochs: int = 3
    steps: int | None = None
    lr: float = 1e-3
    warmup: int | None = None
    decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    val_every: int | None = None
    held_out: float = 0.0
    rows: int = ROWS
    save_every: int | None = 1

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            model="tiny",
            data=DataConfig(batch_size=self.batch, val_fraction=self.held_out),
            optimizer=OptimizerConfig(lr=self.lr, warmup_steps=self.warmup, weight_decay=self.decay, betas=self.betas),
            trainer=TrainerConfig(
                max_epochs=self.epochs,
                max_steps=self.steps,
                accumulate=self.accumulate,
                val_every_steps=self.val_every,
                accelerator="cpu",
                save_every_steps=self.save_every,
                keep_last=100,
            ),
        )


class Recorder(Callback):
    """Callback that records each step: its learning rates, weight decays, betas and rows."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        groups = trainer.optimizers[0].param_groups
        step = self.steps.setdefault(trainer.global_step, {"rows": [], "epoch": trainer.current_epoch})
        step["rows"] += batch.rows.tolist()
        step["rate"] = [group["lr"] for group in groups]
        step["decay"] = [group["weight_decay"] for group in groups]
        step["betas"] = {tuple(group["betas"]) for group in groups}


@dataclass
class Run:
    """A run that has ended."""

    steps: dict[int, dict[str, Any]]
    module: CLIPWrapper
    lineage: dict[str, Any] = field(default_factory=dict)


def fit(folder: Path, chosen: Settings, resume: Path | None = None) -> Run:
    config = chosen.config
    torch.manual_seed(0)
    module = CLIPWrapper(
        "tiny", TINY, optimizer=config.optimizer, accumulate=config.trainer.accumulate, run_config=config
    )
    data = PairDataModule(
        MemorySource(chosen.rows),
        batch_size=chosen.batch,
        image_size=32,
        val_fraction=chosen.held_out,
        batches_per_step=chosen.accumulate,
    )
    recorder = Recorder()
    with quiet_lightning():
        trainer = make_trainer(
            config.trainer, folder, loggers=[], has_validation=data.has_validation, log_every=1, callbacks=[recorder]
        )
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    lineage = module.lineage()
    assert lineage is not None
    return Run(recorder.steps, module, lineage)


def walk(chosen: Settings, step: int, epoch: int, position: int) -> int:
    """Return the length of a run by walking from a position in the data to the end, step by step."""
    size = chosen.batch * chosen.accumulate
    while epoch < chosen.epochs and (chosen.steps is None or step < chosen.steps):
        if position + size > chosen.rows:
            epoch, position = epoch + 1, 0
        else:
            step, position = step + 1, position + size
    return step


def rate(chosen: Settings, step: int, total: int, warmup: int) -> float:
    """Return the learning rate of a step by the rule in docs/guides/resume.md."""
    if step < warmup:
        return chosen.lr * (step + 1) / warmup
    return chosen.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Runs with a checkpoint after each step: without and with validation at each epoch's end, and by steps."""
    folders = {}
    for name, chosen in BEGINNINGS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "checkpoints").mkdir()
        run = fit(folders[name], chosen)
        assert len(run.steps) == 30
    return folders


BEGINNINGS = {
    "epochs": Settings(),
    "validated": Settings(held_out=0.025, rows=ROWS + 2),
    "steps": Settings(steps=30, epochs=5),
    "steps_validated": Settings(steps=30, epochs=5, held_out=0.025, rows=ROWS + 2),
}

CHANGES = {
    "batch": st.sampled_from([3, 8, 16, 40]),
    "accumulate": st.sampled_from([2, 3]),
    "epochs": st.sampled_from([2, 3, 4, 6]),
    "steps": st.sampled_from([5, 25, 31, 45]),
    "lr": st.sampled_from([1e-4, 5e-3]),
    "warmup": st.sampled_from([0, 5, 50]),
    "decay": st.sampled_from([0.0, 0.5]),
    "betas": st.sampled_from([(0.8, 0.9)]),
}


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=2, unique=True))
    changed = {name: draw(CHANGES[name]) for name in names}
    assume(changed.get("batch", 4) * changed.get("accumulate", 1) <= ROWS)
    return changed


def check(folder: Path, beginning: Settings, step: int, changed: dict[str, Any]) -> None:
    """Resume from a step with changed settings, and compare every later step with the rule."""
    chosen = replace(beginning, **changed, save_every=None)
    rows = beginning.rows - 2 if beginning.held_out else beginning.rows
    chosen, beginning = replace(chosen, rows=rows), replace(beginning, rows=rows)
    epoch, position = divmod(step * 4, ROWS)
    total = walk(chosen, step, epoch, position)
    stored = folder / f"checkpoints/step-{step:08d}.ckpt"
    target = folder / "resumed"
    (target / "checkpoints").mkdir(parents=True, exist_ok=True)
    run = fit(target, replace(chosen, rows=rows + 2 if beginning.held_out else rows), stored)
    assert sorted(run.steps) == list(range(step, total)), (step, changed, sorted(run.steps), total)
    warmup = chosen.warmup if chosen.warmup is not None else 3
    for number, seen in run.steps.items():
        assert seen["rate"] == pytest.approx([rate(chosen, number, total, warmup)] * 2, rel=1e-12, abs=1e-15)
        assert seen["decay"] == [chosen.decay, 0.0]
        assert seen["betas"] == {chosen.betas}
        assert len(seen["rows"]) == chosen.batch * chosen.accumulate
    if total > step:
        assert run.lineage["progress"]["total_steps"] == total
        assert run.lineage["progress"]["warmup_steps"] == warmup


#: Around the end of an epoch, where Lightning's counters differ most; all others are slow.
_QUICK = {(name, step) for name in ("validated", "steps") for step in (9, 10, 11)}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (name, step) if (name, step) in _QUICK else pytest.param(name, step, marks=pytest.mark.slow)
        for name in BEGINNINGS
        for step in range(1, 30)
    ],
)
def test_a_plain_resume_keeps_the_curve(first: Mapping[str, Path], name: str, step: int) -> None:
    check(first[name], BEGINNINGS[name], step, {})


# At an epoch's end, and so near it that today's batches do not fill a step.
@example(name="steps", step=10, changed={"batch": 16})
@example(name="steps", step=5, changed={"batch": 40})
@example(name="epochs", step=5, changed={"batch": 40})
@example(name="validated", step=1, changed={"batch": 40})
@settings(max_examples=6)
@given(name=st.sampled_from(sorted(BEGINNINGS)), step=st.integers(1, 29), changed=changes())
def test_two_settings_at_any_step(first: Mapping[str, Path], name: str, step: int, changed: dict[str, Any]) -> None:
    check(first[name], BEGINNINGS[name], step, changed)


@pytest.mark.slow
@settings(max_examples=100)
@given(name=st.sampled_from(sorted(BEGINNINGS)), step=st.integers(1, 29), changed=changes())
def test_two_settings_at_any_step_many_times(
    first: Mapping[str, Path], name: str, step: int, changed: dict[str, Any]
) -> None:
    check(first[name], BEGINNINGS[name], step, changed)
