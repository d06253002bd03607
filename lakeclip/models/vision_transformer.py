"""The vision transformer image tower (Dosovitskiy et al. 2020, as changed by Radford et al. 2021, section 2.4)."""

from __future__ import annotations

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
    """

    def __init__(self, *, resolution: int, patch_size: int, width: int, layers: int, embed_dim: int) -> None:
        super().__init__()
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
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        groups = [(tokens.shape[0], tokens.shape[1])]
        first = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        feature: Tensor = self.ln_post(self.transformer(self.ln_pre(tokens.flatten(0, 1)), groups, first))
        return feature @ self.proj

    def _embed_patches(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches width"]:
        """`conv1`, as the matrix product that it is: its patches do not overlap.

        The gradient of the convolution's weights in bfloat16 takes a CPU fifty times as long.
        """
        batch, channels, height, width = images.shape
        side = self.conv1.kernel_size[0]
        cut = images.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        return F.linear(cut.reshape(batch, -1, channels * side * side), self.conv1.weight.flatten(1))
