"""Model FLOPs against the model's own count, and the peaks that they are held against."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lakeclip.config.schema import ModelConfig
from lakeclip.models.zoo import model_config, summarize
from lakeclip.text.tokenizer import tokenize
from lakeclip.training.planning.cost import PairFlops, Peak, Tokens, count_tokens, peak, sheet_flops
from tests.conftest import TINY

SMALL = replace(TINY, transformer_width=32, transformer_layers=2, context_length=77)


@pytest.mark.parametrize("config", [SMALL, model_config("ViT-Ti/4-32px")], ids=["tiny", "ViT-Ti/4-32px"])
def test_a_pair_with_a_full_caption_costs_three_times_its_forward_pass(config: ModelConfig) -> None:
    flops, length = PairFlops(config), config.context_length
    pair = flops.images(1, config.image_resolution) + flops.texts(Tokens(1, length, length**2))
    assert pair == pytest.approx(3 * summarize(config).gflops * 1e9, rel=1e-9)


def test_a_caption_costs_what_its_own_tokens_cost() -> None:
    """Not what the longest caption of the batch costs, and not what the context would."""
    ids = tokenize(["a cat", "a photo of a very large dog in front of a small house"])
    lengths = [int((row != 0).sum()) for row in ids]
    alone = [summarize(replace(SMALL, context_length=length)).text_gflops for length in lengths]
    tokens, squares = count_tokens(ids).tolist()
    assert tokens == sum(lengths) < ids.numel()
    assert PairFlops(SMALL).texts(Tokens(2, tokens, squares)) == pytest.approx(3e9 * sum(alone), rel=1e-9)


def test_padding_is_not_work() -> None:
    ids = tokenize(["a cat", "two dogs"])
    assert count_tokens(ids).tolist() == count_tokens(ids[:, :10]).tolist()


def test_images_cost_by_their_size() -> None:
    assert PairFlops(SMALL).images(5, 64) == pytest.approx(
        15e9 * summarize(replace(SMALL, image_resolution=64)).image_gflops
    )


def test_patches_that_are_dropped_are_not_work() -> None:
    """A quarter of 16 patches is as much work as an image of four."""
    whole, dropped = PairFlops(SMALL), PairFlops(SMALL, patch_dropout=0.75)
    assert dropped.images(3, 64) == pytest.approx(whole.images(3, 32), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H200", 989, 494),
        ("NVIDIA H100 80GB HBM3", 989, 494),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA A100 80GB PCIe", 312, 156),
        ("NVIDIA L4", 121, 60),
        ("NVIDIA L40S", 362, 183),
        ("NVIDIA GeForce RTX 4090", 165, 82.6),
        ("Tesla T4", None, 8.1),
    ],
)
def test_the_data_sheets_are_found_by_the_drivers_names(name: str, half: float | None, single: float) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert sheet_flops(name, torch.float32) == single * 1e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert sheet_flops(name, torch.bfloat16) == (half * 1e12 if half else None)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "A card"])
def test_a_card_that_is_not_listed_is_to_be_measured(name: str) -> None:
    assert sheet_flops(name, torch.float16) is None


def test_a_cpus_peak_is_measured() -> None:
    found = peak(torch.device("cpu"), torch.float32)
    assert found.source == "measured"
    assert 1e8 < found.flops < 1e14


def test_a_peak_is_said_in_its_own_unit() -> None:
    assert [str(Peak(flops, "")) for flops in (4.2e10, 8.3e11, 9.89e14)] == ["42 GFLOP/s", "0.8 TFLOP/s", "989 TFLOP/s"]
