"""What a step has to compute, and what the device could: the two sides of the model FLOPs utilisation, MFU.

Model FLOPs are those that the result needs (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): three times the
forward pass over each image at the size used and over each caption's own tokens. What is computed again, as by
checkpointing and micro-batches, does not count; nor does padding, nor the loss and the optimiser.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lakeclip.config.schema import ModelConfig
from lakeclip.models.clip import CLIP

#: Forward and backward; the backward pass has two products for each of the forward pass.
_PASSES = 3
#: On a CPU that others use too, the fastest of so much time is near the truth.
_MEASURED_SECONDS = 0.6


class Tokens(NamedTuple):
    """What captions cost hangs on: how many there are, their tokens, and the squares of their tokens, summed."""

    captions: int
    tokens: int
    squares: int


def count_tokens(ids: Int[Tensor, "batch context"]) -> Int[Tensor, "2"]:
    """Tokens up to the end of text, and their squares, summed over the batch; on the device of the ids."""
    lengths = ids.argmax(dim=-1) + 1
    return torch.stack([lengths.sum(), lengths.square().sum()])


class PairFlops:
    """Model FLOPs of training `CLIP`, forward and backward.

    Args:
        config: the model's sizes.
        patch_dropout: share of each image's patches that are left out.
    """

    def __init__(self, config: ModelConfig, patch_dropout: float = 0.0) -> None:
        self._config = config
        self._patch_dropout = patch_dropout

    def images(self, num: int, side: int) -> float:
        """FLOPs for so many images of `side` × `side` pixels."""
        return num * _PASSES * _image_flops(self._config, side, self._patch_dropout)

    def texts(self, counted: Tokens) -> float:
        """FLOPs for captions."""
        fixed, linear, square = _text_terms(self._config)
        return _PASSES * (fixed * counted.captions + linear * counted.tokens + square * counted.squares)


@cache
def _image_flops(config: ModelConfig, side: int, patch_dropout: float) -> float:
    patch = config.vision_patch_size
    if not patch_dropout or patch is None:
        return _count(replace(config, image_resolution=side), side, None)
    # A transformer's work is a parabola in its tokens: the patches and the class token.
    grids = (2, 3, 4)
    terms = _parabola(
        [grid**2 + 1 for grid in grids],
        [_count(replace(config, image_resolution=grid * patch), grid * patch, None) for grid in grids],
    )
    tokens = max(1, round((side // patch) ** 2 * (1 - patch_dropout))) + 1
    return terms[0] + terms[1] * tokens + terms[2] * tokens**2


@cache
def _text_terms(config: ModelConfig) -> tuple[float, float, float]:
    """FLOPs of one caption: a constant, a term in its tokens, and one in their square for the attention."""
    lengths = (8, 16, 32)
    config = replace(config, context_length=max(*lengths, config.context_length))
    return _parabola(lengths, [_count(config, None, length) for length in lengths])


def _count(config: ModelConfig, side: int | None, length: int | None) -> float:
    """FLOPs of the forward pass over one image or over one caption, counted without computing."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = _on_meta(config)
        if side is not None:
            model.encode_image(torch.zeros(1, 3, side, side))
        if length is not None:
            model.encode_text(torch.zeros(1, length, dtype=torch.int64))
    return float(counter.get_total_flops())


@cache
def _on_meta(config: ModelConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(config).eval()


def _parabola(places: list[int] | tuple[int, ...], values: list[float]) -> tuple[float, float, float]:
    constant, linear, square = np.linalg.solve(np.vander(places, 3, increasing=True).astype(float), values)
    return float(constant), float(linear), float(square)


# ── the device ────────────────────────────────────────────────────────────────────────────────────────────────────


class Peak(NamedTuple):
    """The most that a device can compute.

    Attributes:
        flops: a second.
        source: where the figure is from.
    """

    flops: float
    source: str

    def __str__(self) -> str:
        if self.flops < 1e11:
            return f"{self.flops / 1e9:.0f} GFLOP/s"
        return f"{self.flops / 1e12:.{1 if self.flops < 1e13 else 0}f} TFLOP/s"


@dataclass(frozen=True)
class _Card:
    """10¹² operations a second on dense matrices. None: the card has no units for that arithmetic."""

    name: str
    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


# NVIDIA's data sheets (consumer cards: the whitepapers of Ampere GA102 and Ada), with accumulation in float32; half of
# the figure where that is for sparse matrices. Names as the driver gives them, without NVIDIA, Tesla and GeForce.
_CARDS = (
    _Card("V100-SXM.*", 125, None, None, 15.7),
    _Card("V100-PCI.*", 112, None, None, 14),
    _Card("T4", 65, None, None, 8.1),
    _Card("A10", 125, 125, 62.5, 31.2),
    _Card("A30", 165, 165, 82, 10.3),
    _Card("A100[- ](SXM|PCI|80GB PCIe).*", 312, 312, 156, 19.5),
    _Card("H100 PCIe", 756, 756, 378, 51),
    _Card("H100 NVL", 835, 835, 417, 60),
    _Card("H100 80GB HBM3", 989, 989, 494, 67),
    _Card("H200", 989, 989, 494, 67),
    _Card("H200 NVL", 835, 835, 417, 60),
    _Card("L4", 121, 121, 60, 30.3),
    _Card("L40", 181, 181, 90.5, 90.5),
    _Card("L40S", 362, 362, 183, 91.6),
    _Card("RTX 3090", 71, 71, 35.6, 35.6),
    _Card("RTX 4090", 165, 165, 82.6, 82.6),
)


def peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of a device for products of matrices, from its data sheet or, where that is not known, measured.

    On a CPU that is the peak of the threads that PyTorch uses in this process.

    Args:
        dtype: of the products. Float32 on a GPU that may use TF32 is TF32.
    """
    if device.type == "cuda" and (known := sheet_flops(torch.cuda.get_device_name(device), dtype)):
        return Peak(known, "data sheet")
    return Peak(_measured(device, dtype, torch.get_num_threads()), "measured")


def sheet_flops(name: str, dtype: torch.dtype) -> float | None:
    """FLOPs a second that a card's data sheet promises; None for a card or an arithmetic that is not listed."""
    short = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    for card in _CARDS:
        if re.fullmatch(card.name, short):
            single = card.fp32 if torch.get_float32_matmul_precision() == "highest" else card.tf32 or card.fp32
            tera = {torch.float16: card.fp16, torch.bfloat16: card.bf16, torch.float32: single}.get(dtype)
            return tera * 1e12 if tera else None
    return None


@cache
@torch.no_grad()
def _measured(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    """The fastest of some products of square matrices that are large enough to take ten milliseconds.

    What else the machine does meanwhile makes it less. Measured once: a process may make many runs.
    """
    size, best, started = 1024, 0.0, time.perf_counter()
    while True:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        _timed(left, right)
        seconds = min(_timed(left, right) for _ in range(5))
        best = max(best, 2 * size**3 / seconds)
        if (seconds > 0.01 and time.perf_counter() - started > _MEASURED_SECONDS) or size >= 16_384:
            return best
        if seconds < 0.02:
            size *= 2


def _timed(left: Tensor, right: Tensor) -> float:
    _synchronize(left.device)
    started = time.perf_counter()
    torch.matmul(left, right)
    _synchronize(left.device)
    return max(time.perf_counter() - started, 1e-9)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
