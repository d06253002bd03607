"""Tests of the distillation loss and its soft targets: definitions, limits and symmetries."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lakeclip.losses import Targets, distillation_loss, sinkhorn, softmax_targets, tiles, transport_targets
from tests.unit.losses.dense import dense_distillation, dense_transport, random_pairs

CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def leaves(batch: int, embed: int = 5, *, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(tensor.requires_grad_() for tensor in random_pairs(batch, embed, seed=seed))


def random_targets(batch: int) -> Targets:
    return transport_targets(*random_pairs(batch, seed=77)[:2])


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(batch=st.integers(2, 9), side=st.integers(1, 10), is_cached=st.booleans(), seed=st.integers(0, 99))
def test_value_and_gradients_equal_the_definition_for_any_tile_size(
    batch: int, side: int, is_cached: bool, seed: int
) -> None:
    inputs, targets = leaves(batch, seed=seed), random_targets(batch)
    dense = dense_distillation(*inputs, *targets)
    expected = (dense.detach(), *torch.autograd.grad(dense, inputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_TILE_SIZE", side)
        patch.setattr(tiles, "_MAX_CACHED_ENTRIES", 2**24 if is_cached else 0)
        loss = distillation_loss(*inputs, targets)
        found = (loss.detach(), *torch.autograd.grad(loss, inputs))
        with torch.no_grad():
            value = distillation_loss(*inputs, targets)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(value, expected[0], **CLOSE)


def test_gradcheck_in_float64() -> None:
    targets = random_targets(5)
    assert torch.autograd.gradcheck(lambda *inputs: distillation_loss(*inputs, targets), leaves(5, 4))


def test_the_loss_is_zero_where_the_student_equals_the_teacher() -> None:
    student = random_pairs(6)
    inputs = tuple(x.requires_grad_() for x in student)
    loss = distillation_loss(*inputs, softmax_targets(*student))
    assert abs(float(loss.detach())) < 1e-12
    for gradient in torch.autograd.grad(loss, inputs):
        assert float(gradient.abs().max()) < 1e-12


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts, scale = random_pairs(8)
    targets = random_targets(8)
    exact = distillation_loss(images.bfloat16().double(), texts.bfloat16().double(), scale, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = distillation_loss(images.bfloat16(), texts.bfloat16(), scale.float(), targets)
    torch.testing.assert_close(half.double(), exact, rtol=1e-4, atol=1e-5)


# ── the targets ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(batch=st.integers(2, 9), epsilon=st.sampled_from([0.05, 0.15, 1.0]), seed=st.integers(0, 99))
def test_transport_targets_equal_otters_formulas(batch: int, epsilon: float, seed: int) -> None:
    """Use exp(-cost/ε), five iterations, no diagonal, and one target for each direction, as OTTER does."""
    images, texts, _ = random_pairs(batch, seed=seed)
    found = transport_targets(images, texts, epsilon=epsilon)
    torch.testing.assert_close(tuple(found), dense_transport(images, texts, epsilon, 5), rtol=1e-9, atol=1e-12)


def test_targets_are_distributions() -> None:
    images, texts, scale = random_pairs(7)
    for targets in (transport_targets(images, texts), softmax_targets(images, texts, scale)):
        ones = torch.ones(7, dtype=torch.float64)
        torch.testing.assert_close(targets.image_to_text.sum(dim=1), ones, **CLOSE)
        torch.testing.assert_close(targets.text_to_image.sum(dim=0), ones, **CLOSE)


def test_transport_targets_are_zero_for_the_given_pairs() -> None:
    targets = transport_targets(*random_pairs(7)[:2])
    assert float(targets.image_to_text.diagonal().max()) == 0
    assert float(targets.text_to_image.diagonal().max()) == 0


def test_the_better_match_gets_the_larger_target() -> None:
    """Guard against exp(+cost/ε), with which the best match had a probability of nearly 0."""
    first, second = torch.eye(4, dtype=torch.float64)[:2]
    images = torch.stack([first, first, second, second])
    targets = transport_targets(images, images)
    assert float(targets.image_to_text[0, 1]) > 0.99
    assert float(targets.text_to_image[3, 2]) > 0.99


def test_the_marginals_of_the_plan_are_uniform() -> None:
    plan = sinkhorn(torch.rand(6, 6, dtype=torch.float64), epsilon=0.2, iterations=500).exp()
    share = torch.full((6,), 1 / 6, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(dim=0), share, **CLOSE)
    torch.testing.assert_close(plan.sum(dim=1), share, **CLOSE)


@given(seed=st.integers(0, 99))
def test_a_transposed_cost_gives_the_transposed_plan(seed: int) -> None:
    cost = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plan = sinkhorn(cost, epsilon=0.15, iterations=5, columns_first=True)
    torch.testing.assert_close(plan, sinkhorn(cost.T, epsilon=0.15, iterations=5).T, **CLOSE)


@given(seed=st.integers(0, 99))
def test_images_and_texts_are_treated_alike(seed: int) -> None:
    images, texts, _ = random_pairs(6, seed=seed)
    forward, swapped = transport_targets(images, texts), transport_targets(texts, images)
    torch.testing.assert_close(forward.image_to_text, swapped.text_to_image.T, **CLOSE)


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_a_permutation_of_the_batch_permutes_the_targets(order: list[int], seed: int) -> None:
    images, texts, _ = random_pairs(6, seed=seed)
    targets, permuted = transport_targets(images, texts), transport_targets(images[order], texts[order])
    for before, after in zip(targets, permuted, strict=True):
        torch.testing.assert_close(after, before[order][:, order], **CLOSE)


def test_a_small_epsilon_gives_the_optimal_matching() -> None:
    cost = torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    plan = 6 * sinkhorn(cost, epsilon=1e-3, iterations=3000).exp()
    columns = min(itertools.permutations(range(6)), key=lambda order: float(cost[range(6), order].sum()))
    best = torch.eye(6, dtype=torch.float64)[list(columns)]
    torch.testing.assert_close(plan, best, rtol=0, atol=1e-3)


def test_a_large_epsilon_gives_uniform_targets() -> None:
    targets = transport_targets(*random_pairs(6)[:2], epsilon=1e6)
    uniform = (1 - torch.eye(6, dtype=torch.float64)) / 5
    torch.testing.assert_close(targets.image_to_text, uniform, rtol=0, atol=1e-5)
    torch.testing.assert_close(targets.text_to_image, uniform, rtol=0, atol=1e-5)


def test_a_small_epsilon_does_not_overflow_float32() -> None:
    images, texts, _ = (tensor.float() for tensor in random_pairs(6))
    targets = transport_targets(images, texts, epsilon=1e-3)
    assert torch.isfinite(targets.image_to_text).all()
    assert math.isclose(float(targets.image_to_text.sum()), 6, rel_tol=1e-4)


def test_the_target_of_a_single_pair_is_itself() -> None:
    targets = transport_targets(*random_pairs(1)[:2])
    assert targets.image_to_text.tolist() == targets.text_to_image.tolist() == [[1.0]]


def test_targets_have_no_gradient() -> None:
    images, texts, scale = leaves(4)
    assert not transport_targets(images, texts).image_to_text.requires_grad
    assert not softmax_targets(images, texts, scale).image_to_text.requires_grad
