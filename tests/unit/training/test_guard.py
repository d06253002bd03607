"""The guard: skipped steps, the report of their rows, the rollback, and no skips in a good run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lakeclip.checkpoints.folder import LAST, SKIPPED
from lakeclip.errors import ConfigError
from lakeclip.text.tokenizer import tokenize
from lakeclip.training.guard import Guard
from lakeclip.training.loss_spikes import LossSpikeDetector
from lakeclip.types import Batch
from tests.unit.training.test_module import trainer, wrapper

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|val_dataloader|LeafSpec)")


def batches(num: int, *, bad: Sequence[int] = (), size: int = 4) -> DataLoader[Any]:
    """Batches with their rows; the third row of each bad one is not a number."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(num):
        rows = torch.arange(size) + size * number
        images = torch.rand(size, 3, 32, 32, generator=generator)
        if number in bad:
            images[2] = math.nan
        made.append(Batch(images, tokenize([f"photo number {row}" for row in rows.tolist()]), rows))
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


class Weights(L.Callback):
    """The weights and statistics after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.seen.append({name: value.clone() for name, value in module.state_dict().items()})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def skipped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SKIPPED).read_text().splitlines()]


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_a_step_that_is_not_finite_is_skipped_and_its_row_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, weights = wrapper(name, lr=1e-3, guard=Guard(3, tmp_path)), Weights()
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[weights])
    fit.fit(module, batches(6, bad=[2]))
    assert fit.global_step == 6, "a skipped step counts"
    assert same(weights.seen[1], weights.seen[2]), "batch norm's statistics too"
    assert not same(weights.seen[2], weights.seen[3])
    assert all(bool(value.isfinite().all()) for value in weights.seen[-1].values())
    (entry,) = skipped(tmp_path)
    assert entry["step"] == 3
    assert entry["rows"] == {"rows": [8, 9, 10, 11]}
    if name == "tiny-vit":
        assert entry["suspects"] == {"rows": [10]}
    assert "step 3 is skipped: the loss is nan" in caplog.text


def test_all_batches_of_an_accumulated_step_are_skipped_and_named(tmp_path: Path) -> None:
    module, weights = wrapper(lr=1e-3, guard=Guard(3, tmp_path), accumulate=2), Weights()
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[weights]).fit(module, batches(6, bad=[2]))
    assert same(weights.seen[1], weights.seen[3])
    assert not same(weights.seen[3], weights.seen[5])
    assert skipped(tmp_path)[0]["rows"] == {"rows": list(range(8, 16))}
    assert skipped(tmp_path)[0]["suspects"] == {"rows": [10]}


class Save(L.Callback):
    """Callback that saves a checkpoint after the second batch, as a validation would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        if rest[-1] == 1:
            trainer.save_checkpoint(self.path)


def test_weights_and_optimiser_roll_back_after_several_skips_in_a_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, weights = wrapper(lr=1e-3, guard=Guard(2, tmp_path)), Weights()
    callbacks = [weights, Save(tmp_path / LAST)]
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=callbacks)
    fit.fit(module, batches(8, bad=[4, 5]))
    assert not same(weights.seen[1], weights.seen[3])
    assert same(weights.seen[1], weights.seen[5]), "back to the checkpoint"
    assert not same(weights.seen[5], weights.seen[6]), "and onwards"
    assert fit.global_step == 8
    assert [entry["step"] for entry in skipped(tmp_path)] == [5, 6]
    # Two steps to the checkpoint, two after it: the averages know of no others.
    (state,) = {int(state["step"]) for state in fit.optimizers[0].state.values()}
    assert state == 4
    assert "roll back to step 2" in caplog.text


@pytest.mark.parametrize("checkpointed", [False, True])
def test_without_a_checkpoint_to_roll_back_to_the_run_ends_with_advice(checkpointed: bool, tmp_path: Path) -> None:
    module = wrapper(lr=1e-3, guard=Guard(2, tmp_path))
    callbacks = [Save(tmp_path / LAST)] if checkpointed else []
    reason = "did not help" if checkpointed else "no checkpoint"
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=callbacks)
    with pytest.raises(ConfigError, match=f"{reason}[\\s\\S]*--lr"):
        fit.fit(module, batches(10, bad=range(3, 10)))


def test_a_gradient_that_is_not_finite_skips_the_step(tmp_path: Path) -> None:
    """The loss itself may be finite."""

    class Spoil(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            if trainer.global_step == 2:
                gradient = next(module.parameters()).grad
                assert gradient is not None
                gradient.view(-1)[0] = math.inf

    module, weights = wrapper(lr=1e-3, guard=Guard(3, tmp_path)), Weights()
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[weights, Spoil()])
    fit.fit(module, batches(4))
    assert same(weights.seen[1], weights.seen[2])
    assert not same(weights.seen[2], weights.seen[3])
    (entry,) = skipped(tmp_path)
    assert (entry["fault"], entry["suspects"]) == ("the gradient's norm is inf", {})


@pytest.mark.slow
def test_a_loss_far_above_the_recent_ones_skips_the_step(tmp_path: Path) -> None:
    """One batch has images that the model has learned, with captions of other images."""
    images = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32)
    ids = tokenize(["a red page", "green", "the colour blue"])
    made = [Batch(images, ids.roll(1, 0) if number == 110 else ids, torch.arange(3)) for number in range(112)]
    module, weights = wrapper(lr=1e-3, guard=Guard(3, tmp_path)), Weights()
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[weights])
    fit.fit(module, DataLoader(made, batch_size=None))  # type: ignore[arg-type]
    (entry,) = skipped(tmp_path)
    assert entry["step"] == 111
    assert "spikes" in entry["fault"]
    assert same(weights.seen[109], weights.seen[110])


@pytest.mark.parametrize("batch", [8, 64, 32768])
def test_a_good_run_has_no_spikes(batch: int) -> None:
    """A noisy start above ln N, a fall, and the noise of the batch's size, now and then three times that."""
    draw, spikes = random.Random(batch), LossSpikeDetector()
    start = math.log(batch)
    for step in range(5000):
        noise = draw.gauss(0, 2 / math.sqrt(batch)) * (3 if draw.random() < 0.01 else 1)
        loss = start * (0.2 + 0.8 * math.exp(-step / 1000)) + math.exp(-step / 20) * abs(draw.gauss(0, 1)) + noise
        assert loss <= spikes.threshold()
        spikes.add(loss)


def test_a_spike_is_detected_after_an_earlier_one() -> None:
    spikes = LossSpikeDetector()
    for step in range(100):
        spikes.add(1.0 + 0.01 * (step % 7) + 9.0 * (step == 90))
    assert spikes.threshold() < 3
    assert LossSpikeDetector().threshold() == math.inf
