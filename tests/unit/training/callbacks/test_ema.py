"""Averaged weights: their values, their place in a checkpoint, and an exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lakeclip.training.callbacks.ema import AveragedWeights
from lakeclip.training.module import CLIPWrapper
from tests.unit.training.test_guard import Weights, batches
from tests.unit.training.test_module import trainer, wrapper

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|logging interval|val_dataloader|LeafSpec|WeightAveraging|resuming)"
)


def averaged(seen: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """Compute the average in closed form: decay^(n-1) · first + Σ (1 - decay) decay^(n-k) · k-th."""
    last = len(seen) - 1
    shares = [decay**last] + [(1 - decay) * decay ** (last - number) for number in range(1, last + 1)]
    return {
        name: torch.stack([share * one[name].double() for share, one in zip(shares, seen, strict=True)]).sum(0)
        for name in seen[0]
        if seen[0][name].is_floating_point()
    }


def run(
    folder: Path, epochs: int, name: str = "tiny-vit", bad: tuple[int, ...] = (), twice: bool = False, **resume: Any
) -> Any:
    module, weights = wrapper(name, lr=1e-2), Weights()
    callbacks = [AveragedWeights(0.8), weights, Halfway()]
    fit = trainer(folder, max_epochs=epochs, max_steps=8, enable_checkpointing=False, callbacks=callbacks)
    made = list(batches(4, bad=bad).dataset) * (2 if twice else 1)  # type: ignore[call-overload]
    fit.fit(module, DataLoader(made, batch_size=None), **resume)
    fit.save_checkpoint(folder / "end.ckpt")
    return module, weights.seen, torch.load(folder / "end.ckpt", weights_only=True)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_a_checkpoint_contains_average_and_raw_weights(name: str, tmp_path: Path) -> None:
    _, seen, content = run(tmp_path, 2, name)
    for key, value in averaged(seen, 0.8).items():
        torch.testing.assert_close(content["state_dict"][key].double(), value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(content["current_model_state"][key], content["state_dict"][key])
    restored = CLIPWrapper.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert torch.equal(
        restored.state_dict()["model.visual.conv1.weight"], content["state_dict"]["model.visual.conv1.weight"]
    )


def test_a_skipped_step_is_not_averaged(tmp_path: Path) -> None:
    _, seen, content = run(tmp_path, 1, bad=(2,))
    expected = averaged([seen[0], seen[1], seen[3]], 0.8)
    for key, value in expected.items():
        torch.testing.assert_close(content["state_dict"][key].double(), value, rtol=1e-5, atol=1e-6)


class Halfway(L.Callback):
    """Callback that saves a checkpoint after the fourth step, in the middle of an epoch."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 4:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "half.ckpt")


def test_a_resumed_run_ends_with_the_same_weights_and_average(tmp_path: Path) -> None:
    """The loader does not skip batches on a resume, so it yields the same four batches twice."""
    (tmp_path / "resumed").mkdir()
    _, _, whole = run(tmp_path, 1, twice=True)
    cut = torch.load(tmp_path / "half.ckpt", weights_only=True)
    proj = "model.visual.proj"
    assert not torch.equal(cut["state_dict"][proj], cut["current_model_state"][proj])
    half = {"ckpt_path": tmp_path / "half.ckpt", "weights_only": True}
    _, seen, resumed = run(tmp_path / "resumed", 1, twice=True, **half)
    assert len(seen) == 4
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
