"""Tests that a model in bfloat16 encodes as in float32, up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.config.schema import ModelConfig
from lakeclip.models.bfloat16 import to_bfloat16
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from tests.unit.checkpoints.test_exports import RESNET, VIT, random_clip
from tests.unit.models.test_dual_encoder import IDS, bert

#: Large blocks of colour, so that the images differ even for a network that averages over pixels.
_BLOCKS = torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIXELS = _BLOCKS.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)


def min_cosine(features: Tensor, expected: Tensor) -> float:
    return float(F.cosine_similarity(features.float(), expected.float()).min())


@torch.no_grad()
@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_clip_features_stay_close_to_float32(config: ModelConfig) -> None:
    model, ids = random_clip(config), torch.tensor([[49406, 320, 1929, 49407], [49406, 537, 49407, 0]])
    images, texts, scale = model.encode_image(PIXELS), model.encode_text(ids), float(model.logit_scale)
    to_bfloat16(model)
    found = model.encode_image(PIXELS), model.encode_text(ids)
    assert [features.dtype for features in found] == [torch.bfloat16] * 2
    assert min_cosine(found[0], images) > 0.999
    assert min_cosine(found[1], texts) > 0.999
    # The differences between images are kept too, not only what they have in common.
    assert min_cosine(found[0] - found[0].mean(dim=0), images - images.mean(dim=0)) > 0.9
    assert float(model.logit_scale) == scale


def test_norms_stay_float32() -> None:
    model = random_clip(RESNET)
    to_bfloat16(model)
    kept = {name for name, value in model.state_dict().items() if value.dtype == torch.float32}
    norms = [name for name, part in model.named_modules() if isinstance(part, (nn.LayerNorm, nn.BatchNorm2d))]
    expected = {f"{norm}.{name}" for norm in norms for name in dict(model.get_submodule(norm).named_parameters())}
    assert expected < kept
    assert all("bn" in name or "ln_" in name or "downsample.1" in name for name in kept - {"logit_scale"})


@torch.no_grad()
def test_dual_encoder_features_stay_close_to_float32() -> None:
    torch.manual_seed(0)
    image_encoder = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten())
    for model in (
        DualEncoder(image_encoder, bert(), embed_dim=24, image_size=64).eval(),
        DualEncoder(CLIPImage(), bert(), image_size=64).eval(),
    ):
        images, texts = model.encode_image(PIXELS), model.encode_text(IDS)
        to_bfloat16(model)
        assert min_cosine(model.encode_image(PIXELS), images) > 0.999
        assert min_cosine(model.encode_text(IDS), texts) > 0.999


class CLIPImage(nn.Module):
    """A CLIP's image tower with a head to the text tower's width."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = CLIP(VIT).visual
        self.head = nn.Linear(48, 24)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.head(self.visual(images))
        return features
