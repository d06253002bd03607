"""The residual attention block of CLIP's image and text transformers, and the stack that reads out one token.

Parameter names are those of OpenAI's released weights: `resblocks.N.{ln_1, attn.in_proj_weight, attn.in_proj_bias,
attn.out_proj, ln_2, mlp.c_fc, mlp.c_proj}`.

Padding is not computed. Sequences are concatenated to one matrix of tokens, grouped by length. All products with
weights are products with that matrix; only attention runs group by group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.models.activation_checkpointing import Recompute, maybe_checkpoint

#: Layout of sequences in a matrix of tokens: (number of sequences, tokens of each) of every group, in order.
Groups = Sequence[tuple[int, int]]
if not TYPE_CHECKING:
    # The number of sequences is a symbol while a program with dynamic batch size is exported.
    Groups = Sequence[tuple[int | torch.SymInt, int]]


def multi_head_attention(
    queries: Float[Tensor, "batch targets width"],
    keys: Float[Tensor, "batch tokens width"],
    values: Float[Tensor, "batch tokens width"],
    *,
    heads: int,
    causal: bool = False,
    visible: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch targets width"]:
    """Compute multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    It uses PyTorch's fused kernel, except for bfloat16 on a CPU. There, at CLIP's sequence lengths, the fused backward
    costs several times as much as two matrix products and a softmax.

    Args:
        heads: number of heads; it must divide the width.
        causal: token i attends to tokens 0…i only.
        visible: mask of the tokens that may be attended to. Default: all.
    """
    q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (queries, keys, values))
    mask = None if visible is None else visible[:, None, None, :]
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if causal:
            scores = scores + torch.full_like(scores[0, 0], -torch.inf).triu(1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights: Tensor = scores.softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that computes half-precision inputs in float32 and casts the result back.

    Sums over the width are too inexact in bfloat16: the worst gradient of a step is off by a quarter.
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return super().forward(x)
        normed = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


class Attention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values, initialized as `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Float[Tensor, "tokens width"], groups: Groups, *, causal: bool
    ) -> Float[Tensor, "tokens width"]:
        projected = _split(F.linear(x, self.in_proj_weight, self.in_proj_bias), groups)
        parts = [
            multi_head_attention(*part.chunk(3, dim=-1), heads=self.heads, causal=causal).flatten(0, 1)
            for part in projected
        ]
        mixed: Tensor = self.out_proj(_concatenate(parts))
        return mixed

    def forward_selected(
        self,
        target: Float[Tensor, "sequences width"],
        x: Float[Tensor, "tokens width"],
        groups: Groups,
        visible: Sequence[Bool[Tensor, "_ _"] | None],
    ) -> Float[Tensor, "sequences width"]:
        """Compute the output of `target`, one token per sequence, over the visible tokens of its sequence in `x`."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        queries = torch.split(F.linear(target, weight[:width], bias[:width]), [sequences for sequences, _ in groups])
        keys_values = _split(F.linear(x, weight[width:], bias[width:]), groups)
        parts = [
            multi_head_attention(query[:, None], *part.chunk(2, dim=-1), heads=self.heads, visible=mask)[:, 0]
            for query, part, mask in zip(queries, keys_values, visible, strict=True)
        ]
        mixed: Tensor = self.out_proj(_concatenate(parts))
        return mixed


Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]


class BlockSettings(NamedTuple):
    """Settings that the blocks of a tower share.

    Attributes:
        activation: activation of the MLPs: OpenAI's QuickGELU, x · sigmoid(1.702 x); GELU; GELU by way of tanh.
        mlp_width: width between the two layers of the MLPs; None for four times the tower's width.
        eps: number that the layer norms add to the variance.
    """

    activation: Activation = "quick_gelu"
    mlp_width: int | None = None
    eps: float = 1e-5


_OPENAI = BlockSettings()


class MLP(nn.Module):
    """Two linear layers with an activation in between.

    QuickGELU equals silu(1.702 x) / 1.702. Both factors are applied to the weights, which are smaller than the
    activations.
    """

    def __init__(self, width: int, settings: BlockSettings = _OPENAI) -> None:
        super().__init__()
        hidden = settings.mlp_width or 4 * width
        self.activation = settings.activation
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.activation != "quick_gelu":
            approximate = "tanh" if self.activation == "gelu_tanh" else "none"
            projected: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate=approximate))
            return projected
        hidden = F.silu(F.linear(x, 1.702 * self.c_fc.weight, 1.702 * self.c_fc.bias))
        return F.linear(hidden, (1 / 1.702) * self.c_proj.weight, self.c_proj.bias)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int, settings: BlockSettings = _OPENAI) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width, eps=settings.eps)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width, eps=settings.eps)
        self.mlp = MLP(width, settings)

    def forward(self, x: Float[Tensor, "tokens width"], groups: Groups, causal: bool) -> Float[Tensor, "tokens width"]:
        x = x + self.attn(self.ln_1(x), groups, causal=causal)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def forward_selected(
        self,
        rows: Int[Tensor, " sequences"],
        x: Float[Tensor, "tokens width"],
        groups: Groups,
        visible: Sequence[Bool[Tensor, "_ _"] | None],
    ) -> Float[Tensor, "sequences width"]:
        """Compute these rows of `forward`, one token of each sequence, without the other rows."""
        normed = self.ln_1(x)
        target = x[rows] + self.attn.forward_selected(normed[rows], normed, groups, visible)
        out: Tensor = target + self.mlp(self.ln_2(target))
        return out


class Transformer(nn.Module):
    """A stack of blocks that returns one token per sequence; the last block computes only that token.

    Attributes:
        recompute: which activations are recomputed in the backward pass instead of stored.
    """

    def __init__(self, width: int, layers: int, heads: int, *, causal: bool, settings: BlockSettings = _OPENAI) -> None:
        super().__init__()
        self.causal = causal
        self.recompute: Recompute = "off"
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, settings) for _ in range(layers))

    def forward_all(self, x: Float[Tensor, "tokens width"], groups: Groups) -> Float[Tensor, "tokens width"]:
        """Return the features of all tokens."""
        for block in self.resblocks:
            x = maybe_checkpoint(block, self.recompute, x, groups, self.causal)
        return x

    def forward(
        self, x: Float[Tensor, "tokens width"], groups: Groups, position: Int[Tensor, " sequences"]
    ) -> Float[Tensor, "sequences width"]:
        """Return the features of the token at `position` of each sequence, from all embedded tokens."""
        *blocks, last = self.resblocks
        assert isinstance(last, ResidualAttentionBlock)
        for block in blocks:
            x = maybe_checkpoint(block, self.recompute, x, groups, self.causal)
        positions = torch.split(position, [sequences for sequences, _ in groups])
        visible = [
            torch.arange(length, device=x.device) <= last_visible[:, None] if self.causal else None
            for last_visible, (_, length) in zip(positions, groups, strict=True)
        ]
        return maybe_checkpoint(
            last.forward_selected, self.recompute, sequence_starts(groups, x.device) + position, x, groups, visible
        )


def sequence_starts(groups: Groups, device: torch.device) -> Int[Tensor, " sequences"]:
    """Return the row of the matrix of tokens at which each sequence starts."""
    parts, first = [], 0
    for sequences, length in groups:
        parts.append(torch.arange(first, first + sequences * length, length, device=device))
        first += sequences * length
    return torch.cat(parts)


def _split(x: Tensor, groups: Groups) -> list[Tensor]:
    """Split (tokens, …) into one tensor (sequences, length, …) per group."""
    parts = torch.split(x, [sequences * length for sequences, length in groups])
    return [part.reshape(*group, *part.shape[1:]) for part, group in zip(parts, groups, strict=True)]


def _concatenate(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]
