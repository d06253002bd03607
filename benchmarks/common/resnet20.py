"""ResNet-20 for 32×32 pixels (He et al. 2015, section 4.2), used as a pretrained image tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: ImageNet's mean and deviation, which the weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut, which is padded with zero channels where the number of channels grows."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride, self.added_channels = (2, channels - channels_in) if channels != channels_in else (1, 0)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        padding = self.added_channels // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, padding, padding))
        return F.relu(out + shortcut)


class ResNet20(nn.Module):
    """ResNet-20 without its classifier: images (batch, 3, 32, 32) → features (batch, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


def load_resnet20(path: str) -> ResNet20:
    """Load weights saved by DataParallel, {"state_dict": {"module.…": …}}, without the classifier."""
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("module."): value for name, value in saved.items()}
    model = ResNet20()
    model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("linear.")})
    return model
