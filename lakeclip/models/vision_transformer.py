"""The vision transformer image tower (Dosovitskiy et al. 2020, as changed by Radford et al. 2021, section 2.4)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.models.transformer import LayerNorm, Transformer

#: Every attention head of CLIP's image towers is this wide.
HEAD_WIDTH = 64


class VisionTransformer(nn.Module):
    """Square patches and a class token, normalised before the first block; the feature is the class token's.

    Args:
        resolution: side of the square input in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        width: of a token, a multiple of 64.
        layers: number of blocks.
        embed_dim: width of the shared space.

    Attributes:
        patch_dropout: share of each image's patches, drawn anew each time, that training leaves out (FLIP, Li et al.
            2022, arXiv 2212.00794).
    """

    def __init__(self, *, resolution: int, patch_size: int, width: int, layers: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_dropout = 0.0
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((resolution // patch_size) ** 2 + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, width // HEAD_WIDTH, causal=False)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        patches = self._embed_patches(images)
        # Sizes by `shape`: `len` would make a number of what is a symbol in an exported program.
        class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        positions = positions_on_grid(self.positional_embedding, images.shape[-1] // self.conv1.kernel_size[0])
        tokens = torch.cat([class_token, patches], dim=1) + positions.to(patches.dtype)
        if self.training and self.patch_dropout:
            tokens = self._drop_patches(tokens)
        groups = [(tokens.shape[0], tokens.shape[1])]
        first = torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device)
        feature: Tensor = self.ln_post(self.transformer(self.ln_pre(tokens.flatten(0, 1)), groups, first))
        return feature @ self.proj

    def _drop_patches(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch fewer width"]:
        """The class token and a random choice of the others."""
        batch, patches, width = len(tokens), tokens.shape[1] - 1, tokens.shape[2]
        num_kept = max(1, round(patches * (1 - self.patch_dropout)))
        kept = torch.rand(batch, patches, device=tokens.device).argsort(dim=1)[:, :num_kept] + 1
        kept = torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1)
        return tokens.gather(1, kept[:, :, None].expand(-1, -1, width))

    def _embed_patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """`conv1`, as the matrix product that it is: its patches do not overlap.

        The gradient of the convolution's weights in bfloat16 takes a CPU fifty times as long.
        """
        batch, channels, height, width = images.shape
        side = self.conv1.kernel_size[0]
        cut = images.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        return F.linear(cut.reshape(batch, -1, channels * side * side), self.conv1.weight.flatten(1))


def positions_on_grid(embedding: Float[Tensor, "tokens width"], side: int) -> Float[Tensor, "others width"]:
    """Position embeddings for another grid of cells: the first token's as it is, the grid's resampled.

    Args:
        embedding: of one token that stands for all, and of a square grid row by row.
        side: cells along one side of the grid that is wanted.
    """
    first, grid = embedding[:1], embedding[1:]
    if len(grid) == side * side:
        return embedding
    old = math.isqrt(len(grid))
    planes = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(planes, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, resampled[0].flatten(1).T])
