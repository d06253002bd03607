"""Model FLOPs, compared with those of `summarize`, and peak FLOPs of devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lakeclip.config.schema import ModelConfig
from lakeclip.models.zoo import model_config, summarize
from lakeclip.text.tokenizer import tokenize
from lakeclip.training.flops import PairFlops, PeakFlops, TokenCounts, count_tokens, data_sheet_flops, peak_flops
from tests.conftest import TINY

SMALL = replace(TINY, transformer_width=32, transformer_layers=2, context_length=77)


@pytest.mark.parametrize("config", [SMALL, model_config("ViT-Ti/4-32px")], ids=["tiny", "ViT-Ti/4-32px"])
def test_a_pair_with_a_full_caption_costs_three_forward_passes(config: ModelConfig) -> None:
    flops, length = PairFlops(config), config.context_length
    pair = flops.images(1, config.image_resolution) + flops.texts(TokenCounts(1, length, length**2))
    assert pair == pytest.approx(3 * summarize(config).gflops * 1e9, rel=1e-9)


def test_text_flops_depend_on_each_captions_own_tokens() -> None:
    """Neither the longest caption of the batch nor the context length matters."""
    ids = tokenize(["a cat", "a photo of a very large dog in front of a small barn"])
    lengths = [int((row != 0).sum()) for row in ids]
    alone = [summarize(replace(SMALL, context_length=length)).text_gflops for length in lengths]
    tokens, squares = count_tokens(ids).tolist()
    assert tokens == sum(lengths) < ids.numel()
    assert PairFlops(SMALL).texts(TokenCounts(2, tokens, squares)) == pytest.approx(3e9 * sum(alone), rel=1e-9)


def test_padding_is_not_counted() -> None:
    ids = tokenize(["a cat", "two dogs"])
    assert count_tokens(ids).tolist() == count_tokens(ids[:, :10]).tolist()


def test_padding_that_is_attended_to_is_counted() -> None:
    config = replace(SMALL, causal=False)
    expected = 3e9 * summarize(config).text_gflops
    for tokens in (2, config.context_length):
        assert PairFlops(config).texts(TokenCounts(1, tokens, tokens**2)) == pytest.approx(expected)


def test_image_flops_depend_on_the_image_size() -> None:
    assert PairFlops(SMALL).images(5, 64) == pytest.approx(
        15e9 * summarize(replace(SMALL, image_resolution=64)).image_gflops
    )


def test_dropped_patches_are_not_counted() -> None:
    """A quarter of 16 patches costs as much as an image of four."""
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
def test_data_sheet_flops_by_the_drivers_name(name: str, half: float | None, single: float) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert data_sheet_flops(name, torch.float32) == single * 1e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert data_sheet_flops(name, torch.bfloat16) == (half * 1e12 if half else None)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "A card"])
def test_an_unlisted_gpu_has_no_data_sheet(name: str) -> None:
    assert data_sheet_flops(name, torch.float16) is None


def test_peak_of_a_cpu_is_measured() -> None:
    found = peak_flops(torch.device("cpu"), torch.float32)
    assert found.source == "measured"
    assert 1e8 < found.flops < 1e14


def test_peak_is_printed_in_a_suitable_unit() -> None:
    assert [str(PeakFlops(flops, "")) for flops in (4.2e10, 8.3e11, 9.89e14)] == [
        "42 GFLOP/s",
        "0.8 TFLOP/s",
        "989 TFLOP/s",
    ]
