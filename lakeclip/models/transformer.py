"""The residual attention block of CLIP's image and text transformers, and a stack of them read out at one token.

Parameter names are those of OpenAI's released weights: `resblocks.N.{ln_1, attn.in_proj_weight, attn.in_proj_bias,
attn.out_proj, ln_2, mlp.c_fc, mlp.c_proj}`.

Padding is not work: sequences lie one after another in one matrix of tokens, those of like length together. All
products with weights are products of that matrix, and only attention looks at one group of sequences after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.models.recompute import Recompute, recomputed

#: How sequences lie in a matrix of tokens: (number of sequences, tokens of each) of every group, in order.
Groups = Sequence[tuple[int, int]]
if not TYPE_CHECKING:
    # In a program for any number of sequences that number is a symbol.
    Groups = Sequence[tuple[int | torch.SymInt, int]]


def attend(
    queries: Float[Tensor, "batch targets width"],
    keys: Float[Tensor, "batch tokens width"],
    values: Float[Tensor, "batch tokens width"],
    *,
    heads: int,
    causal: bool = False,
    visible: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch targets width"]:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    In one fused kernel, except for bfloat16 on a CPU: there the fused kernel's backward costs several times what two
    matrix products and a softmax do, at the lengths that CLIP has.

    Args:
        heads: how many slices the width is cut into; it must divide the width.
        causal: token i attends to tokens 0…i only.
        visible: which tokens of each sequence may be attended to. Default: all.
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
    """Layer normalisation that computes in float32 when its input is half precision, and casts back.

    Sums over the width lose too much in bfloat16: the worst gradient of a step is off by a quarter.
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return super().forward(x)
        normed = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


class Attention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values, initialised as `nn.MultiheadAttention`."""

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
        parts = [attend(*part.chunk(3, dim=-1), heads=self.heads, causal=causal).flatten(0, 1) for part in projected]
        mixed: Tensor = self.out_proj(_joined(parts))
        return mixed

    def at(
        self,
        target: Float[Tensor, "sequences width"],
        x: Float[Tensor, "tokens width"],
        groups: Groups,
        visible: Sequence[Bool[Tensor, "_ _"] | None],
    ) -> Float[Tensor, "sequences width"]:
        """What `target`, one token of each sequence, gathers from the tokens of its sequence in `x` that it may see."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        queries = torch.split(F.linear(target, weight[:width], bias[:width]), [sequences for sequences, _ in groups])
        keys_values = _split(F.linear(x, weight[width:], bias[width:]), groups)
        parts = [
            attend(query[:, None], *part.chunk(2, dim=-1), heads=self.heads, visible=mask)[:, 0]
            for query, part, mask in zip(queries, keys_values, visible, strict=True)
        ]
        mixed: Tensor = self.out_proj(_joined(parts))
        return mixed


class MLP(nn.Module):
    """Two linear layers, four times the width between them, with OpenAI's activation QuickGELU: x · sigmoid(1.702 x).

    That is silu(1.702 x) / 1.702. Both factors are put into the weights: these are smaller than what they multiply.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        hidden = F.silu(F.linear(x, 1.702 * self.c_fc.weight, 1.702 * self.c_fc.bias))
        return F.linear(hidden, (1 / 1.702) * self.c_proj.weight, self.c_proj.bias)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Float[Tensor, "tokens width"], groups: Groups, causal: bool) -> Float[Tensor, "tokens width"]:
        x = x + self.attn(self.ln_1(x), groups, causal=causal)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def at(
        self,
        rows: Int[Tensor, " sequences"],
        x: Float[Tensor, "tokens width"],
        groups: Groups,
        visible: Sequence[Bool[Tensor, "_ _"] | None],
    ) -> Float[Tensor, "sequences width"]:
        """The block's output for one token of each sequence: exactly these rows of `forward`, without the rest."""
        normed = self.ln_1(x)
        target = x[rows] + self.attn.at(normed[rows], normed, groups, visible)
        out: Tensor = target + self.mlp(self.ln_2(target))
        return out


class Transformer(nn.Module):
    """A stack of blocks that is read out at one token per sequence; the last block computes that token only.

    Attributes:
        recompute: which activations are computed again in the backward pass instead of kept.
    """

    def __init__(self, width: int, layers: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.recompute: Recompute = "off"
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))

    def forward(
        self, x: Float[Tensor, "tokens width"], groups: Groups, position: Int[Tensor, " sequences"]
    ) -> Float[Tensor, "sequences width"]:
        """Embedded tokens in; the features of the token at `position` of each sequence out."""
        *blocks, last = self.resblocks
        assert isinstance(last, ResidualAttentionBlock)
        for block in blocks:
            x = recomputed(block, self.recompute, x, groups, self.causal)
        positions = torch.split(position, [sequences for sequences, _ in groups])
        visible = [
            torch.arange(length, device=x.device) <= own[:, None] if self.causal else None
            for own, (_, length) in zip(positions, groups, strict=True)
        ]
        return recomputed(last.at, self.recompute, starts(groups, x.device) + position, x, groups, visible)


def starts(groups: Groups, device: torch.device) -> Int[Tensor, " sequences"]:
    """The row of the matrix of tokens at which each sequence begins."""
    parts, first = [], 0
    for sequences, length in groups:
        parts.append(torch.arange(first, first + sequences * length, length, device=device))
        first += sequences * length
    return torch.cat(parts)


def _split(x: Tensor, groups: Groups) -> list[Tensor]:
    """(tokens, …) into every group's (sequences, tokens of each, …)."""
    parts = torch.split(x, [sequences * length for sequences, length in groups])
    return [part.reshape(*group, *part.shape[1:]) for part, group in zip(parts, groups, strict=True)]


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]
