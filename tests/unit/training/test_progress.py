"""Length of a resumed run, compared with a walk through its data; which settings a resume accepts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.config.schema import (
    DataConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    KeepConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainConfig,
    TrainerConfig,
)
from lakeclip.data.position import DataPosition
from lakeclip.errors import ConfigError
from lakeclip.training.progress import TrainingProgress
from lakeclip.training.resume.settings import changed_settings


@given(
    rows=st.integers(1, 60),
    size=st.integers(1, 60),
    step=st.integers(0, 50),
    epoch=st.integers(0, 4),
    used=st.integers(0, 59),
    epochs=st.none() | st.integers(0, 6),
    steps=st.none() | st.integers(1, 90),
)
def test_total_steps_equal_a_walk(
    rows: int, size: int, step: int, epoch: int, used: int, epochs: int | None, steps: int | None
) -> None:
    position = used % rows
    total = TrainingProgress(step, epoch, position).total_steps(
        num_rows=rows, samples_per_step=size, max_epochs=epochs, max_steps=steps
    )
    if epochs is None and steps is None:
        assert total is None
        return
    taken = step
    if size <= rows or epochs is not None:
        while (epochs is None or epoch < epochs) and (steps is None or taken < steps):
            if position + size > rows:
                epoch, position = epoch + 1, 0
            else:
                taken, position = taken + 1, position + size
        assert total == taken


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 39), st.integers(0, 60))
def test_the_step_at_a_position_is_the_inverse_of_the_position_at_a_step(
    rows: int, size: int, used: int, further: int
) -> None:
    if size > rows:
        return
    start = DataPosition(7, 2, used % rows, 100)
    reached = start.advance_to(7 + further, num_rows=rows, global_batch=size)
    assert start.step_at(reached.epoch, reached.position, num_rows=rows, samples_per_step=size) == 7 + further


FINETUNE = FinetuneConfig(
    optimizer=FinetuneOptimizerConfig(lr=1e-5, algorithm="adamw", layer_decay=0.8), trainer=TrainerConfig(name="a")
)
TRAIN = TrainConfig(optimizer=OptimizerConfig(ema_decay=0.9), trainer=TrainerConfig(name="a"))


@pytest.mark.parametrize(
    ("start", "changes", "refused"),
    [
        (FINETUNE, {"start": "openai:x.pt"}, "--from"),
        (FINETUNE, {"text_encoder": "hf:other"}, "--text-encoder"),
        (FINETUNE, {"keep": KeepConfig(lora_rank=8)}, "--lora-rank"),
        (FINETUNE, {"keep": KeepConfig(lock_image="all")}, "--lock-image"),
        (FINETUNE, {"optimizer": replace(FINETUNE.optimizer, algorithm="sgd")}, "--algorithm"),
        (FINETUNE, {"optimizer": replace(FINETUNE.optimizer, layer_decay=1.0)}, "--layer-decay"),
        (FINETUNE, {"optimizer": replace(FINETUNE.optimizer, layer_decay=0.7, lr=2e-5)}, None),
        (FINETUNE, {"teacher": TeacherConfig(targets="none")}, "--targets"),
        (FINETUNE, {"teacher": TeacherConfig(targets="softmax", alpha=0.7)}, None),
        (FINETUNE, {"teacher": TeacherConfig(alpha=1.0)}, "--alpha"),
        (FINETUNE, {"teacher": TeacherConfig(initial_scale=3.9)}, "--initial-scale"),
        (TRAIN, {"optimizer": replace(TRAIN.optimizer, ema_decay=None)}, "--ema-decay"),
        (TRAIN, {"optimizer": replace(TRAIN.optimizer, ema_decay=0.99)}, None),
        (TRAIN, {"data": DataConfig(seed=3, max_val_rows=7)}, "--max-val-rows and --seed"),
        (TRAIN, {"data": DataConfig(same_by=("image",), num_workers=4)}, None),
        (TRAIN, {"trainer": TrainerConfig(name="a", runs="elsewhere")}, "--runs"),
        (TRAIN, {"trainer": TrainerConfig(name="a", precision="bf16", devices=2)}, None),
    ],
)
def test_settings_are_applied_or_refused(start: Any, changes: dict[str, Any], refused: str | None) -> None:
    config = replace(start, **changes)
    if refused is None:
        changed = changed_settings(config, asdict(start), start, Path("runs/a"))
        assert changed
        assert all(was != now for was, now in changed.values())
        return
    with pytest.raises(ConfigError, match="cannot change when runs/a is resumed") as error:
        changed_settings(config, asdict(start), start, Path("runs/a"))
    for flag in refused.split(" and "):
        assert flag in error.value.what
    assert all((error.value.found, error.value.allowed, error.value.next_step))


def test_a_run_in_a_moved_folder_may_be_named_as_it_is_now() -> None:
    config = replace(TRAIN, trainer=TrainerConfig(name="b", runs="moved"))
    assert changed_settings(config, asdict(TRAIN), TRAIN, Path("moved/b")) == {}


def test_a_setting_that_the_checkpoint_does_not_know_had_its_default() -> None:
    recorded = asdict(TRAIN)
    del recorded["optimizer"]["max_grad_norm"]
    assert changed_settings(TRAIN, recorded, TRAIN, Path("runs/a")) == {}
    clipped = replace(TRAIN, optimizer=replace(TRAIN.optimizer, max_grad_norm=1.0))
    assert changed_settings(clipped, recorded, TRAIN, Path("runs/a")) == {"optimizer.max_grad_norm": (None, 1.0)}
