"""The blocks: exact shortcuts, lean activation, norms that hold in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lakeclip.models.transformer import Attention, LayerNorm, Transformer, attend, quick_gelu


def test_attention_equals_torchs_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(32, heads=4).double(), nn.MultiheadAttention(32, 4, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 32, dtype=torch.float64)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x, causal=False), theirs(x, x, x)[0])
    torch.testing.assert_close(ours(x, causal=True), theirs(x, x, x, attn_mask=mask)[0])


def test_attention_is_initialised_as_torchs() -> None:
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

    whole = x
    for block in transformer.resblocks:
        whole = block(whole, causal=causal)
    expected = whole[torch.arange(4), position]
    torch.testing.assert_close(transformer(x, position), expected)

    parameters = [x, *transformer.parameters()]
    short = torch.autograd.grad(transformer(x, position).square().sum(), parameters)
    full = torch.autograd.grad(expected.square().sum(), parameters)
    torch.testing.assert_close(short, full)


def test_invisible_tokens_are_not_attended_to() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 8).unbind()
    visible = torch.arange(5) < torch.tensor([[2], [5]])
    mixed = attend(q, k, v, heads=2, visible=visible)
    torch.testing.assert_close(mixed[:1], attend(q[:1], k[:1, :2], v[:1, :2], heads=2))
    torch.testing.assert_close(mixed[1:], attend(q[1:], k[1:], v[1:], heads=2))


def test_quick_gelu_is_the_sigmoid_form_and_keeps_one_tensor() -> None:
    x = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x))
    torch.autograd.gradcheck(quick_gelu, x)

    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        quick_gelu(x)
    assert sum(t.numel() for t in kept if t.ndim) == x.numel()


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
    """The same values and gradients, to the digits that bfloat16 has, by the path without the fused kernel."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 5, 16, generator=generator) for _ in range(3)]
    visible = torch.arange(5) <= torch.tensor([[0], [2], [4]]) if masked else None
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (tensor.clone().to(dtype).requires_grad_() for tensor in inputs)
        mixed = attend(q, k, v, heads=2, causal=causal, visible=visible)
        mixed.float().square().sum().backward()
        results.append([mixed.float(), q.grad.float(), k.grad.float(), v.grad.float()])
    for exact, half in zip(*results, strict=True):
        torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)
