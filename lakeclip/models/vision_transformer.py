"""The vision transformer image tower (Dosovitskiy et al. 2020, as changed by Radford et al. 2021, section 2.4)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.models.transformer import MLP, Attention, BlockSettings, Groups, LayerNorm, Transformer

#: Width of an attention head of OpenAI's image towers.
HEAD_WIDTH = 64


class AttentionPool(nn.Module):
    """Pooling by attention with one learned query over all tokens, then an MLP with a residual (SigLIP)."""

    def __init__(self, width: int, heads: int, settings: BlockSettings) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attn = Attention(width, heads)
        self.ln = LayerNorm(width, eps=settings.eps)
        self.mlp = MLP(width, settings)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Float[Tensor, "images_tokens width"], groups: Groups) -> Float[Tensor, "images width"]:
        query = self.probe[0].to(tokens.dtype).expand(groups[0][0], -1)
        pooled = self.attn.forward_selected(query, tokens, groups, [None])
        out: Tensor = pooled + self.mlp(self.ln(pooled))
        return out


class VisionTransformer(nn.Module):
    """Vision transformer on square patches; by default with a class token, and a norm before the first block.

    Pixels on the right and at the bottom that fill no patch are not used.

    Args:
        resolution: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        width: width of a token.
        layers: number of blocks.
        embed_dim: width of the shared space.
        heads: number of attention heads. Default: heads 64 wide.
        settings: settings of the blocks.
        pool: how the feature is read: "class", "average" or "map" (see `ModelConfig.vision_pool`).
        class_token: put a learned token before the patches.
        patch_bias: add a learned bias to the patches.
        ln_pre: normalise the tokens before the first block.
        projection: multiply the feature with a matrix.

    Attributes:
        patch_dropout: share of each image's patches that is dropped at random in training (FLIP, Li et al. 2022, arXiv
            2212.00794).
    """

    def __init__(
        self,
        *,
        resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        embed_dim: int,
        heads: int | None = None,
        settings: BlockSettings | None = None,
        pool: str = "class",
        class_token: bool = True,
        patch_bias: bool = False,
        ln_pre: bool = True,
        projection: bool = True,
    ) -> None:
        super().__init__()
        settings, heads = settings or BlockSettings(), heads or width // HEAD_WIDTH
        self.patch_dropout = 0.0
        self.pool = pool
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=patch_bias)
        self.class_embedding = nn.Parameter(scale * torch.randn(width)) if class_token else None
        positions = (resolution // patch_size) ** 2 + class_token
        self.positional_embedding = nn.Parameter(scale * torch.randn(positions, width))
        self.ln_pre = LayerNorm(width, eps=settings.eps) if ln_pre else nn.Identity()
        self.transformer = Transformer(width, layers, heads, causal=False, settings=settings)
        self.ln_post = LayerNorm(width, eps=settings.eps)
        self.attn_pool = AttentionPool(width, heads, settings) if pool == "map" else None
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim)) if projection else None

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        tokens = self._embed_patches(images)
        if self.class_embedding is not None:
            # `shape` instead of `len`, which would turn a symbolic size of an exported program into a constant.
            class_token = self.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([class_token, tokens], dim=1)
        positions = resample_position_embedding(
            self.positional_embedding,
            images.shape[-1] // self.conv1.kernel_size[0],
            has_first=self.class_embedding is not None,
        )
        tokens = tokens + positions.to(tokens.dtype)
        if self.training and self.patch_dropout:
            tokens = self._drop_patches(tokens)
        feature = self._pool(self.ln_pre(tokens.flatten(0, 1)), [(tokens.shape[0], tokens.shape[1])])
        return feature if self.proj is None else feature @ self.proj

    def _pool(self, tokens: Float[Tensor, "tokens width"], groups: Groups) -> Float[Tensor, "batch width"]:
        """Compute the blocks and return one feature per image."""
        images, length = groups[0]
        if self.pool == "class":
            first = torch.zeros(images, dtype=torch.int64, device=tokens.device)
            feature: Tensor = self.ln_post(self.transformer(tokens, groups, first))
            return feature
        normed: Tensor = self.ln_post(self.transformer.forward_all(tokens, groups))
        if self.attn_pool is not None:
            pooled: Tensor = self.attn_pool(normed, groups)
            return pooled
        patches = normed.reshape(images, length, -1)
        return patches[:, 0 if self.class_embedding is None else 1 :].mean(dim=1)

    def _drop_patches(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch fewer width"]:
        """Return the class token, if there is one, and a random subset of the patch tokens."""
        first = 0 if self.class_embedding is None else 1
        batch, patches, width = len(tokens), tokens.shape[1] - first, tokens.shape[2]
        num_kept = max(1, round(patches * (1 - self.patch_dropout)))
        kept = torch.rand(batch, patches, device=tokens.device).argsort(dim=1)[:, :num_kept] + first
        if first:
            kept = torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1)
        return tokens.gather(1, kept[:, :, None].expand(-1, -1, width))

    def _embed_patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """Apply `conv1` as a matrix product, which it equals because patches do not overlap.

        On a CPU, the convolution's weight gradient in bfloat16 takes fifty times as long.
        """
        batch, channels, height, width = images.shape
        side = self.conv1.kernel_size[0]
        rows, columns = height // side, width // side
        images = images[:, :, : rows * side, : columns * side]
        patches = images.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, -1, channels * side * side)
        return F.linear(patches, self.conv1.weight.flatten(1), self.conv1.bias)


def resample_position_embedding(
    embedding: Float[Tensor, "tokens width"], side: int, *, has_first: bool = True
) -> Float[Tensor, "others width"]:
    """Resample position embeddings to another grid by bicubic interpolation; keep the first token's.

    Args:
        embedding: embeddings of the class token, if there is one, then of a square grid row by row.
        side: cells along one side of the new grid.
        has_first: True if the first embedding is that of the class token.
    """
    first, grid = embedding[: int(has_first)], embedding[int(has_first) :]
    if len(grid) == side * side:
        return embedding
    old_side = math.isqrt(len(grid))
    planes = grid.reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(planes, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, resampled[0].flatten(1).T])
