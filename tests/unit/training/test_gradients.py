"""Gradient norms, clipping, and gradient accumulation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lakeclip.losses import contrastive_loss
from lakeclip.models.clip import CLIP
from lakeclip.training.gradients import clip_gradients, reduce_step_stats
from lakeclip.training.module import CLIPWrapper
from tests.unit.training.optim.test_optimizers import SMALL
from tests.unit.training.test_module import Rates, pairs, trainer, wrapper

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|logging interval|val_dataloader|LeafSpec)")


def with_gradients() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(SMALL).double()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def norm_of(*tensors: Tensor | None) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors if tensor is not None))


def test_norms_of_each_tower_and_of_all_gradients() -> None:
    model = with_gradients()
    agreed = reduce_step_stats(model, torch.tensor(1.5), scalars=[model.logit_scale], stop=False, factor=0.5)
    image = [p.grad for p in model.visual.parameters()]
    everything = [p.grad for p in model.parameters()]
    text = [p.grad for n, p in model.named_parameters() if not n.startswith("visual.") and n != "logit_scale"]
    assert agreed.image_norm == pytest.approx(0.5 * norm_of(*image), rel=1e-6)
    assert agreed.text_norm == pytest.approx(0.5 * norm_of(*text), rel=1e-6)
    assert agreed.grad_norm == pytest.approx(0.5 * norm_of(*everything), rel=1e-6)
    assert (agreed.loss, agreed.stop) == (1.5, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["visual.conv1.weight", "logit_scale"])
def test_a_nonfinite_gradient_makes_the_norm_nonfinite(bad: float, name: str) -> None:
    model = with_gradients()
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    gradient[(0,) * gradient.ndim] = bad
    assert not math.isfinite(
        reduce_step_stats(model, torch.tensor(1.0), scalars=[model.logit_scale], stop=True, factor=1.0).grad_norm
    )


def test_clipping_equals_pytorchs() -> None:
    model, other = with_gradients(), with_gradients()
    clip_gradients(
        model,
        reduce_step_stats(model, torch.tensor(1.0), scalars=[model.logit_scale], stop=False, factor=1.0).grad_norm,
        0.3,
    )
    torch.nn.utils.clip_grad_norm_(other.parameters(), 0.3)
    for one, expected in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, expected.grad, rtol=1e-6, atol=0)
    before = norm_of(*(p.grad for p in model.parameters()))
    clip_gradients(model, before, 10.0)
    assert norm_of(*(p.grad for p in model.parameters())) == before, "below the maximum already"


class Gradients(L.Callback):
    """Callback that records the gradients of every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.seen.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})


def mean_gradients(module: CLIPWrapper, batches: list[Any]) -> dict[str, Tensor]:
    """Compute the gradients of the mean loss of the batches in one graph."""
    module.zero_grad()
    losses = [contrastive_loss(*module.embed(images, ids), module.model.logit_scale) for images, ids in batches]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("minibatch_size", [None, 3])
def test_accumulated_batches_give_the_mean_of_their_gradients(minibatch_size: int | None, tmp_path: Path) -> None:
    """Five batches, two per step, so the last step of the epoch has one. The learning rate is too small to matter."""
    module, gradients = (
        wrapper(minibatch_size=minibatch_size, accumulate=2, lr=1e-30, weight_decay=0.0, max_grad_norm=1e9),
        Gradients(),
    )
    loader = pairs(20, 4)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, precision="64-true", callbacks=[gradients])
    fit.fit(module, loader)
    assert fit.global_step == 3
    batches = [(images.double(), ids) for images, ids in loader]
    for found, group in zip(gradients.seen, (batches[:2], batches[2:4], batches[4:]), strict=True):
        expected = mean_gradients(module, group)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-13)


def test_schedule_and_counters_count_optimizer_steps(tmp_path: Path) -> None:
    rates = Rates()
    module = wrapper(accumulate=2, lr=1.0, warmup_steps=0)
    fit = trainer(tmp_path, max_epochs=2, callbacks=[rates])
    fit.fit(module, pairs(20, 4))
    assert (fit.global_step, module.total_steps, module.samples_seen) == (6, 6, 40)
    steps = [rates.rates[batch] for batch in (0, 2, 4, 5, 7, 9)]
    assert steps == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
    limited = trainer(tmp_path, max_epochs=2, max_steps=4, enable_checkpointing=False)
    module = wrapper(accumulate=2)
    limited.fit(module, pairs(20, 4))
    assert (limited.global_step, module.total_steps) == (4, 4)
