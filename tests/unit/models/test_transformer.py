"""Tests of the transformer blocks: exactness of shortcuts, recomputation, half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lakeclip.models.activation_checkpointing import Recompute, set_recompute
from lakeclip.models.transformer import MLP, Attention, LayerNorm, Transformer, multi_head_attention


def test_attention_equals_multihead_attention_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(32, heads=4).double(), nn.MultiheadAttention(32, 4, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 32, dtype=torch.float64)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
    for causal, expected in ((False, theirs(x, x, x)[0]), (True, theirs(x, x, x, attn_mask=mask)[0])):
        torch.testing.assert_close(ours(x.flatten(0, 1), [(3, 7)], causal=causal).unflatten(0, (3, 7)), expected)


def test_attention_is_initialized_as_multihead_attention_of_torch() -> None:
    torch.manual_seed(0)
    ours = Attention(64, heads=2)
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(64, 2)
    assert {name: p.shape for name, p in ours.named_parameters()} == {
        name: p.shape for name, p in theirs.named_parameters()
    }
    for name, parameter in theirs.named_parameters():
        assert ours.get_parameter(name).std().item() == pytest.approx(parameter.std().item(), rel=0.05)


@pytest.mark.parametrize("causal", [False, True])
def test_computing_one_token_in_the_last_block_is_exact(causal: bool) -> None:
    torch.manual_seed(0)
    transformer = Transformer(32, layers=3, heads=4, causal=causal).double()
    x = torch.randn(4, 9, 32, dtype=torch.float64, requires_grad=True)
    position = torch.tensor([0, 3, 8, 5])

    tokens, groups = x.flatten(0, 1), [(4, 9)]
    for block in transformer.resblocks:
        tokens = block(tokens, groups, causal)
    expected = tokens.unflatten(0, (4, 9))[torch.arange(4), position]
    torch.testing.assert_close(transformer(x.flatten(0, 1), groups, position), expected)

    parameters = [x, *transformer.parameters()]
    short = torch.autograd.grad(transformer(x.flatten(0, 1), groups, position).square().sum(), parameters)
    full = torch.autograd.grad(expected.square().sum(), parameters)
    torch.testing.assert_close(short, full)


@pytest.mark.parametrize("causal", [False, True])
def test_sequences_of_several_lengths_do_not_affect_each_other(causal: bool) -> None:
    torch.manual_seed(0)
    transformer = Transformer(32, layers=2, heads=4, causal=causal).double()
    groups, position = [(2, 3), (1, 5), (3, 7)], torch.tensor([2, 0, 4, 6, 1, 3])
    x = torch.randn(32, 32, dtype=torch.float64)
    together = transformer(x, groups, position)
    first = 0
    for index, length in enumerate([3, 3, 5, 7, 7, 7]):
        separate = transformer(x[first : first + length], [(1, length)], position[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], separate)
        first += length


@pytest.mark.parametrize("recompute", ["selective", "on"])
def test_checkpointing_gives_the_same_gradients_in_less_memory(recompute: Recompute) -> None:
    torch.manual_seed(0)
    transformer = Transformer(64, layers=4, heads=4, causal=True).double()
    x = torch.randn(40, 64, dtype=torch.float64)

    def gradients() -> tuple[list[torch.Tensor], int]:
        stored: dict[int, int] = {}
        transformer.zero_grad()

        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: stored.setdefault(t.data_ptr(), t.numel()) and t, lambda t: t
        ):
            out = transformer(x, [(4, 10)], torch.tensor([9, 3, 5, 0]))
        out.square().sum().backward()
        return [p.grad.clone() for p in transformer.parameters()], sum(stored.values())

    expected, memory = gradients()
    set_recompute(transformer, recompute)
    found, checkpointed_memory = gradients()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert checkpointed_memory < memory


def test_masked_tokens_are_not_attended_to() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 8).unbind()
    visible = torch.arange(5) < torch.tensor([[2], [5]])
    mixed = multi_head_attention(q, k, v, heads=2, visible=visible)
    torch.testing.assert_close(mixed[:1], multi_head_attention(q[:1], k[:1, :2], v[:1, :2], heads=2))
    torch.testing.assert_close(mixed[1:], multi_head_attention(q[1:], k[1:], v[1:], heads=2))


def test_the_activation_is_quick_gelu() -> None:
    torch.manual_seed(0)
    mlp, x = MLP(8).double(), torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(mlp.c_fc.bias)
    hidden = mlp.c_fc(x)
    expected = mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=1e-12)
    parameters = [x, *mlp.parameters()]
    ours, theirs = (torch.autograd.grad(out.square().sum(), parameters) for out in (mlp(x), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_computes_half_precision_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(256)
    nn.init.normal_(norm.weight)
    x = (100 + torch.randn(8, 256)).to(dtype)
    expected = F.layer_norm(x.float(), (256,), norm.weight, norm.bias)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), expected.to(dtype), rtol=0, atol=0)
    assert norm.to(dtype)(x).dtype == dtype
    assert norm.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_bfloat16_attention_on_a_cpu_equals_the_fused_kernels(causal: bool, masked: bool) -> None:
    """Compare values and gradients of the path without the fused kernel, to bfloat16's precision."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 5, 16, generator=generator) for _ in range(3)]
    visible = torch.arange(5) <= torch.tensor([[0], [2], [4]]) if masked else None
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (tensor.clone().to(dtype).requires_grad_() for tensor in inputs)
        mixed = multi_head_attention(q, k, v, heads=2, causal=causal, visible=visible)
        mixed.float().square().sum().backward()
        results.append([mixed.float(), q.grad.float(), k.grad.float(), v.grad.float()])
    for exact, half in zip(*results, strict=True):
        torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)
