"""The residual attention block of CLIP's image and text transformers, and a stack of them read out at one token.

Parameter names are those of OpenAI's released weights: `resblocks.N.{ln_1, attn.in_proj_weight, attn.in_proj_bias,
attn.out_proj, ln_2, mlp.c_fc, mlp.c_proj}`. Tensors are batch-first throughout.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


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


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """OpenAI's activation x · sigmoid(1.702 x), written so that autograd keeps one tensor instead of two."""
    return F.silu(1.702 * x) / 1.702


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

    def forward(self, x: Float[Tensor, "batch tokens width"], *, causal: bool) -> Float[Tensor, "batch tokens width"]:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        mixed: Tensor = self.out_proj(attend(q, k, v, heads=self.heads, causal=causal))
        return mixed

    def at(
        self,
        target: Float[Tensor, "batch width"],
        x: Float[Tensor, "batch tokens width"],
        visible: Bool[Tensor, "batch tokens"] | None,
    ) -> Float[Tensor, "batch width"]:
        """What `target`, one token of each sequence, gathers from the tokens of `x` that it may see."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = F.linear(target, weight[:width], bias[:width])
        k, v = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        mixed: Tensor = self.out_proj(attend(q[:, None], k, v, heads=self.heads, visible=visible)[:, 0])
        return mixed


class MLP(nn.Module):
    """Two linear layers, four times the width between them, with QuickGELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        mixed: Tensor = self.c_proj(quick_gelu(self.c_fc(x)))
        return mixed


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Float[Tensor, "batch tokens width"], *, causal: bool) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.ln_1(x), causal=causal)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def at(
        self, position: Int[Tensor, " batch"], x: Float[Tensor, "batch tokens width"], *, causal: bool
    ) -> Float[Tensor, "batch width"]:
        """The block's output for one token of each sequence: exactly row `position` of `forward`, without the rest."""
        rows = torch.arange(len(x), device=x.device)
        visible = torch.arange(x.shape[1], device=x.device) <= position[:, None] if causal else None
        normed = self.ln_1(x)
        target = x[rows, position] + self.attn.at(normed[rows, position], normed, visible)
        out: Tensor = target + self.mlp(self.ln_2(target))
        return out


class Transformer(nn.Module):
    """A stack of blocks that is read out at one token per sequence; the last block computes that token only."""

    def __init__(self, width: int, layers: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads) for _ in range(layers))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], position: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch width"]:
        """Embedded tokens in; the features of the token at `position` of each sequence out."""
        *blocks, last = self.resblocks
        assert isinstance(last, ResidualAttentionBlock)
        for block in blocks:
            x = block(x, causal=self.causal)
        return last.at(position, x, causal=self.causal)
