"""Micro-batches: any division of a batch gives the gradients of the whole batch, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.losses import contrastive_loss
from lakeclip.models.activation_checkpointing import Recompute, set_recompute
from lakeclip.models.clip import CLIP
from lakeclip.training.grad_cache import StepResult, backward_through_batch
from tests.unit.training.optim.test_optimizers import SMALL

VIT = replace(SMALL, vision_layers=2, vision_width=64, vision_patch_size=16)


class Towers(nn.Module):
    """CLIP in float64, optionally with dropout on the features."""

    def __init__(self, config: Any, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.clip = CLIP(config).double()
        self.dropout = nn.Dropout(dropout)

    def embed(self, images: Tensor, texts: Any) -> tuple[Tensor, Tensor]:
        ids = texts if isinstance(texts, Tensor) else texts["input_ids"]
        image = F.normalize(self.dropout(self.clip.encode_image(images)), dim=-1)
        return image, F.normalize(self.dropout(self.clip.encode_text(ids)), dim=-1)


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, 32, 32, dtype=torch.float64, generator=generator)
    return images, torch.randint(1, 50, (size, 12), generator=generator)


def step(towers: Towers, size: int, minibatch_size: int | None, *, mapping: bool = False) -> StepResult:
    images, ids = batch_of(size)
    towers.zero_grad()
    torch.manual_seed(2)
    return backward_through_batch(
        images,
        {"input_ids": ids} if mapping else ids,
        model=towers,
        embed=towers.embed,
        loss=lambda images, texts: contrastive_loss(images, texts, towers.clip.logit_scale),
        scalars=(towers.clip.logit_scale,),
        minibatch_size=minibatch_size,
        backward=lambda scalar: scalar.backward(),
        no_sync=nullcontext,
    )


def gradients(towers: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("size", "minibatch_size"), [(10, 4), (7, 16), (1, 1), (6, 1), (4, 2)])
def test_gradients_equal_those_of_the_whole_batch(size: int, minibatch_size: int) -> None:
    """Includes sizes that the micro-batch does not divide. The scale's gradient must be counted once."""
    towers = Towers(VIT)
    images, ids = batch_of(size)
    loss = contrastive_loss(*towers.embed(images, ids), towers.clip.logit_scale)
    loss.backward()
    expected = gradients(towers)
    result = step(towers, size, minibatch_size)
    assert_equal(gradients(towers), expected)
    torch.testing.assert_close(result.loss, loss.detach(), rtol=1e-12, atol=0)


def test_every_parameter_gets_a_gradient() -> None:
    towers = Towers(VIT)
    step(towers, 4, 2)
    assert set(gradients(towers)) == {name for name, _ in towers.named_parameters()}


def test_dropout_masks_are_replayed() -> None:
    """With dropout, the gradients equal those of one graph that holds the same micro-batches."""
    towers = Towers(VIT, dropout=0.5)
    images, ids = batch_of(6)
    torch.manual_seed(2)
    longest_first = ids.argmax(dim=-1).argsort(descending=True, stable=True)
    parts = [towers.embed(images[chunk], ids[chunk]) for chunk in longest_first.split(2)]
    image, text = (torch.cat(side) for side in zip(*parts, strict=True))
    contrastive_loss(image, text, towers.clip.logit_scale).backward()
    expected = gradients(towers)
    step(towers, 6, 2)
    assert_equal(gradients(towers), expected)


def test_running_statistics_are_updated_once_by_the_whole_batch() -> None:
    """The first layer's statistics are the same with micro-batches as without."""
    whole, cut = Towers(SMALL), Towers(SMALL)
    step(whole, 8, None)
    step(cut, 8, 3)
    counts = {int(part.num_batches_tracked) for part in cut.modules() if isinstance(part, nn.BatchNorm2d)}
    assert counts == {1}
    assert {part.momentum for part in cut.modules() if isinstance(part, nn.BatchNorm2d)} == {0.1}
    one, other = whole.clip.visual.bn1, cut.clip.visual.bn1
    torch.testing.assert_close(other.running_mean, one.running_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other.running_var, one.running_var, rtol=1e-12, atol=1e-14)


def test_gradients_with_batch_norm_equal_one_graph_of_the_same_micro_batches() -> None:
    """Layers normalise by their micro-batch in both passes."""
    towers, kept = Towers(SMALL), Towers(SMALL)
    images, ids = batch_of(8)
    longest_first = ids.argmax(dim=-1).argsort(descending=True, stable=True)
    parts = [kept.embed(images[chunk], ids[chunk]) for chunk in longest_first.split(3)]
    image, text = (torch.cat(side) for side in zip(*parts, strict=True))
    contrastive_loss(image, text, kept.clip.logit_scale).backward()
    step(towers, 8, 3)
    assert_equal(gradients(towers), gradients(kept))


def test_mappings_are_divided_like_tensors() -> None:
    towers = Towers(VIT)
    step(towers, 5, 2)
    expected = gradients(towers)
    step(towers, 5, 2, mapping=True)
    assert_equal(gradients(towers), expected)


def test_patch_dropout_is_replayed() -> None:
    """The second pass drops the same patches as the first."""
    towers = Towers(VIT)
    towers.clip.visual.patch_dropout = 0.5
    images, ids = batch_of(6)
    torch.manual_seed(2)
    longest_first = ids.argmax(dim=-1).argsort(descending=True, stable=True)
    parts = [towers.embed(images[chunk], ids[chunk]) for chunk in longest_first.split(2)]
    image, text = (torch.cat(side) for side in zip(*parts, strict=True))
    contrastive_loss(image, text, towers.clip.logit_scale).backward()
    expected = gradients(towers)
    step(towers, 6, 2)
    assert_equal(gradients(towers), expected)


@pytest.mark.parametrize("recompute", ["selective", "on"])
@pytest.mark.parametrize("minibatch_size", [None, 3])
def test_recomputed_activations_change_neither_gradients_nor_batch_norm(
    recompute: Recompute, minibatch_size: int | None
) -> None:
    """A recomputed batch norm must not update its statistics again."""
    kept, lean = Towers(SMALL), Towers(SMALL)
    set_recompute(lean, recompute)
    for towers in (kept, lean):
        step(towers, 8, minibatch_size)
    assert_equal(gradients(lean), gradients(kept))
    for name, buffer in kept.named_buffers():
        torch.testing.assert_close(lean.get_buffer(name), buffer, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("size", "minibatch_size", "backwards"), [(6, 2, 3), (5, 2, 3), (4, None, 1), (1, 1, 1)])
def test_gradients_are_synchronized_only_in_the_last_backward(
    size: int, minibatch_size: int | None, backwards: int
) -> None:
    """The last backward contains the gradient of every parameter."""
    towers = Towers(VIT)
    images, ids = batch_of(size)
    held: list[bool] = []
    depth = 0

    @contextmanager
    def no_sync() -> Iterator[None]:
        nonlocal depth
        depth += 1
        yield
        depth -= 1

    def backward(scalar: Tensor) -> None:
        held.append(depth > 0)
        before = gradients(towers)
        scalar.backward()
        if depth == 0:
            unchanged = [name for name in before if before[name].equal(gradients(towers)[name])]
            assert unchanged == [], "a gradient that the last backward does not reach is not averaged"

    towers.zero_grad()
    backward_through_batch(
        images,
        ids,
        model=towers,
        embed=towers.embed,
        loss=lambda image, text: contrastive_loss(image, text, towers.clip.logit_scale),
        scalars=(towers.clip.logit_scale,),
        minibatch_size=minibatch_size,
        backward=backward,
        no_sync=no_sync,
    )
    assert held == [True] * (backwards - 1) + [False]
