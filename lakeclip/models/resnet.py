"""The modified ResNet image tower (Radford et al. 2021, section 2.4).

A ResNet-D (He et al. 2018: three stem convolutions) with antialiased strides (Zhang 2019: an average pool before each
convolution that would have strode) whose global average pool is replaced by attention.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.models.recompute import Recompute, recomputed
from lakeclip.models.transformer import attend
from lakeclip.models.vision_transformer import HEAD_WIDTH, positions_on_grid

#: A bottleneck gives out this many times the channels it computes with.
EXPANSION = 4


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut. All have stride 1: where the map shrinks, it is averaged."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = EXPANSION * channels
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        # Each residual branch starts as zero (Goyal et al. 2017, section 5.1): the network starts as its shortcuts.
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels_in != channels_out:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)
            self.downsample = nn.Sequential(OrderedDict({"0": shortcut, "1": nn.BatchNorm2d(channels_out)}))

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch new_channels new_height new_width"]:
        out = F.relu(_normed(self.conv1, self.bn1, x), inplace=True)
        out = F.relu(_normed(self.conv2, self.bn2, out), inplace=True)
        out = _normed(self.conv3, self.bn3, self._shrink(out))
        shortcut = x
        if self.downsample is not None:
            conv, norm = self.downsample
            shortcut = _normed(conv, norm, self._shrink(x))
        return F.relu(out + shortcut, inplace=True)

    def _shrink(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """A feature map pooled by attention: the mean over the map, as the one query, attends to the map and to itself."""

    def __init__(self, *, side: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        std = width**-0.5
        self.positional_embedding = nn.Parameter(std * torch.randn(side**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=std)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch embed"]:
        cells = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
        tokens = tokens + positions_on_grid(self.positional_embedding, x.shape[-1]).to(tokens.dtype)
        mean = tokens[:, :1]
        pooled = attend(self.q_proj(mean), self.k_proj(tokens), self.v_proj(tokens), heads=self.heads)
        feature: Tensor = self.c_proj(pooled[:, 0])
        return feature


class ModifiedResNet(nn.Module):
    """Stem (¼ of the size), four stages of bottlenecks (1/32), attention pool.

    Args:
        resolution: side of the square input in pixels, a multiple of 32.
        layers: bottlenecks in each of the four stages.
        width: channels after the stem; the stages compute with 1, 2, 4 and 8 times as many, and the pool's tokens are
            32 times as wide.
        embed_dim: width of the shared space.
    """

    def __init__(self, *, resolution: int, layers: tuple[int, int, int, int], width: int, embed_dim: int) -> None:
        super().__init__()
        self.recompute: Recompute = "off"
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, layers[3], stride=2)
        self.attnpool = AttentionPool(side=resolution // 32, width=32 * width, embed_dim=embed_dim)
        # Channels-last convolutions are 1.1 to 1.5 times as fast. The weights too, so that their gradients' memory has
        # the same order, which distributed training wants.
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.relu(_normed(self.conv1, self.bn1, x), inplace=True)
        x = F.relu(_normed(self.conv2, self.bn2, x), inplace=True)
        x = F.relu(_normed(self.conv3, self.bn3, x), inplace=True)
        x = F.avg_pool2d(x, 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for bottleneck in stage:
                x = recomputed(bottleneck, self.recompute, x)
        feature: Tensor = self.attnpool(x)
        return feature


def _normed(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution and its batch norm; where nothing learns, in the one convolution that they are together.

    That takes a CPU a fifth less time: a norm on its own reads and writes the whole map again.
    """
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.training or torch.is_grad_enabled():
        normed: Tensor = norm(conv(x))
        return normed
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight, bias = conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight.to(conv.weight.dtype), bias.to(conv.weight.dtype), conv.stride, conv.padding)


def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, channels, stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * channels, channels, 1) for _ in range(blocks - 1)))
