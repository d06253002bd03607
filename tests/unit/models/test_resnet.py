"""Tests of the modified ResNet: widths, attention pooling, initialization, memory layout."""

from __future__ import annotations

import pytest
import torch

from lakeclip.models.resnet import AttentionPool, ModifiedResNet
from lakeclip.models.zoo import create_model, model_config


@pytest.mark.parametrize(
    ("name", "width"), [("RN50", 64), ("RN101", 64), ("RN50x4", 80), ("RN50x16", 96), ("RN50x64", 128)]
)
def test_widths_are_the_papers(name: str, width: int) -> None:
    """Guard against stem widths that are four times too large (256 to 512)."""
    with torch.device("meta"):
        visual = create_model(name).visual
    assert isinstance(visual, ModifiedResNet)
    assert model_config(name).vision_width == width
    assert visual.conv3.out_channels == width
    assert [stage[0].conv2.out_channels for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4)] == [
        width,
        2 * width,
        4 * width,
        8 * width,
    ]


def test_rn50_has_the_papers_parameter_count() -> None:
    with torch.device("meta"):
        visual = create_model("RN50").visual
    assert isinstance(visual, ModifiedResNet)
    assert sum(parameter.numel() for parameter in visual.parameters()) == 38_316_896
    assert visual.attnpool.heads == 32


def test_attention_pool_queries_the_mean_only() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(side=3, width=128, embed_dim=16)
    seen: list[torch.Size] = []
    pool.q_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    assert pool(torch.randn(5, 128, 3, 3)).shape == (5, 16)
    assert seen == [(5, 1, 128)]


def test_every_residual_branch_starts_at_zero() -> None:
    torch.manual_seed(0)
    visual = ModifiedResNet(resolution=32, layers=(2, 1, 1, 1), width=4, embed_dim=8).eval()
    gains = {name: p for name, p in visual.named_parameters() if ".bn" in name and name.endswith("weight")}
    assert all(not gain.any() for name, gain in gains.items() if "bn3" in name)
    assert all((gain == 1).all() for name, gain in gains.items() if "bn3" not in name)
    x = torch.rand(1, 16, 8, 8)
    torch.testing.assert_close(visual.layer1[1](x), x)


def test_gradients_have_the_strides_of_their_weights() -> None:
    visual = ModifiedResNet(resolution=64, layers=(1, 1, 1, 1), width=8, embed_dim=8)
    visual(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert visual.layer2[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    for name, parameter in visual.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.stride() == parameter.stride(), name


def test_folding_norms_does_not_change_features() -> None:
    """Compare a norm folded into its convolution, as without gradients, with separate layers, as with gradients."""
    torch.manual_seed(0)
    visual = ModifiedResNet(resolution=64, layers=(1, 2, 1, 1), width=8, embed_dim=16)
    for part in visual.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(part.weight, 1, 0.2)
            torch.nn.init.normal_(part.bias)
    images = torch.randn(4, 3, 64, 64)
    for _ in range(3):
        visual(images)  # updates the norms' statistics
    separate = visual.eval()(images)
    with torch.no_grad():
        folded = visual(images)
        training = visual.train()(images)
    assert separate.requires_grad
    torch.testing.assert_close(folded, separate, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(training, separate, rtol=1e-2)
