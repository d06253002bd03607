"""FLOPs of a training step and peak FLOPs of the device, whose ratio is the model FLOPs utilization (MFU).

Model FLOPs are those that the result needs (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): three times the
forward pass over each image at the size used and over each caption's own tokens. Recomputation (activation
checkpointing, micro-batches), padding, the loss and the optimiser do not count.
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

#: Forward and backward: the backward pass has two matrix products for each one of the forward pass.
_PASSES = 3
#: How long to measure. On a shared CPU the fastest product within this time is close to the true peak.
_MEASURED_SECONDS = 0.6


class TokenCounts(NamedTuple):
    """Caption statistics that determine the text FLOPs.

    Attributes:
        captions: number of captions.
        tokens: sum of their lengths in tokens.
        squares: sum of their squared lengths.
    """

    captions: int
    tokens: int
    squares: int


def count_tokens(ids: Int[Tensor, "batch context"]) -> Int[Tensor, "2"]:
    """Count tokens up to the end of text: their sum and the sum of squared lengths, (2,), on the device of `ids`."""
    lengths = ids.argmax(dim=-1) + 1
    return torch.stack([lengths.sum(), lengths.square().sum()])


class PairFlops:
    """Model FLOPs of training `CLIP`, forward and backward.

    Args:
        config: the model's config.
        patch_dropout: share of each image's patches that is dropped.
    """

    def __init__(self, config: ModelConfig, patch_dropout: float = 0.0) -> None:
        self._config = config
        self._patch_dropout = patch_dropout

    def images(self, num: int, side: int) -> float:
        """Return the FLOPs for `num` images of `side` × `side` pixels."""
        return num * _PASSES * _image_flops(self._config, side, self._patch_dropout)

    def texts(self, counts: TokenCounts) -> float:
        """Return the FLOPs for captions."""
        fixed, linear, square = _text_terms(self._config)
        return _PASSES * (fixed * counts.captions + linear * counts.tokens + square * counts.squares)


@cache
def _image_flops(config: ModelConfig, side: int, patch_dropout: float) -> float:
    patch = config.vision_patch_size
    if not patch_dropout or patch is None:
        return _count(replace(config, image_resolution=side), side, None)
    # A transformer's FLOPs are a quadratic function of its tokens: the patches and the class token, if there is one.
    grids, first = (2, 3, 4), int(config.vision_class_token)
    terms = _fit_quadratic(
        [grid**2 + first for grid in grids],
        [_count(replace(config, image_resolution=grid * patch), grid * patch, None) for grid in grids],
    )
    tokens = max(1, round((side // patch) ** 2 * (1 - patch_dropout))) + first
    return terms[0] + terms[1] * tokens + terms[2] * tokens**2


@cache
def _text_terms(config: ModelConfig) -> tuple[float, float, float]:
    """Return the coefficients of one caption's FLOPs: constant, per token, and per squared token (attention)."""
    if not config.ignores_padding:
        return _count(config, None, config.context_length), 0.0, 0.0
    lengths = (8, 16, 32)
    config = replace(config, context_length=max(*lengths, config.context_length))
    return _fit_quadratic(lengths, [_count(config, None, length) for length in lengths])


def _count(config: ModelConfig, side: int | None, length: int | None) -> float:
    """Count the FLOPs of the forward pass over one image or one caption, on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = _meta_model(config)
        if side is not None:
            model.encode_image(torch.zeros(1, 3, side, side))
        if length is not None:
            model.encode_text(torch.zeros(1, length, dtype=torch.int64))
    return float(counter.get_total_flops())


@cache
def _meta_model(config: ModelConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(config).eval()


def _fit_quadratic(points: list[int] | tuple[int, ...], values: list[float]) -> tuple[float, float, float]:
    constant, linear, square = np.linalg.solve(np.vander(points, 3, increasing=True).astype(float), values)
    return float(constant), float(linear), float(square)


# ── the device ────────────────────────────────────────────────────────────────────────────────────────────────────


class PeakFlops(NamedTuple):
    """Peak arithmetic rate of a device.

    Attributes:
        flops: FLOPs per second.
        source: "data sheet" or "measured".
    """

    flops: float
    source: str

    def __str__(self) -> str:
        if self.flops < 1e11:
            return f"{self.flops / 1e9:.0f} GFLOP/s"
        return f"{self.flops / 1e12:.{1 if self.flops < 1e13 else 0}f} TFLOP/s"


@dataclass(frozen=True)
class _GPUPeak:
    """Peak of a GPU in TFLOP/s on dense matrices; None for arithmetic that it has no units for."""

    name: str
    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


# From NVIDIA's data sheets (consumer cards: the whitepapers of Ampere GA102 and Ada), with accumulation in float32.
# Figures for sparse matrices are halved. Names are the driver's, without NVIDIA, Tesla and GeForce.
_GPUS = (
    _GPUPeak("V100-SXM.*", 125, None, None, 15.7),
    _GPUPeak("V100-PCI.*", 112, None, None, 14),
    _GPUPeak("T4", 65, None, None, 8.1),
    _GPUPeak("A10", 125, 125, 62.5, 31.2),
    _GPUPeak("A30", 165, 165, 82, 10.3),
    _GPUPeak("A100[- ](SXM|PCI|80GB PCIe).*", 312, 312, 156, 19.5),
    _GPUPeak("H100 PCIe", 756, 756, 378, 51),
    _GPUPeak("H100 NVL", 835, 835, 417, 60),
    _GPUPeak("H100 80GB HBM3", 989, 989, 494, 67),
    _GPUPeak("H200", 989, 989, 494, 67),
    _GPUPeak("H200 NVL", 835, 835, 417, 60),
    _GPUPeak("L4", 121, 121, 60, 30.3),
    _GPUPeak("L40", 181, 181, 90.5, 90.5),
    _GPUPeak("L40S", 362, 362, 183, 91.6),
    _GPUPeak("RTX 3090", 71, 71, 35.6, 35.6),
    _GPUPeak("RTX 4090", 165, 165, 82.6, 82.6),
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> PeakFlops:
    """Return the peak of a device for matrix products, from its data sheet or, for unlisted devices, measured.

    On a CPU it is the peak of the threads that PyTorch uses in this process.

    Args:
        dtype: dtype of the products. Float32 counts as TF32 on a GPU that may use it.
    """
    if device.type == "cuda" and (known := data_sheet_flops(torch.cuda.get_device_name(device), dtype)):
        return PeakFlops(known, "data sheet")
    return PeakFlops(_measure_peak(device, dtype, torch.get_num_threads()), "measured")


def data_sheet_flops(name: str, dtype: torch.dtype) -> float | None:
    """Return the FLOPs per second in a GPU's data sheet, or None if the GPU or the dtype is not listed."""
    short = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    for gpu in _GPUS:
        if re.fullmatch(gpu.name, short):
            single = gpu.fp32 if torch.get_float32_matmul_precision() == "highest" else gpu.tf32 or gpu.fp32
            tera = {torch.float16: gpu.fp16, torch.bfloat16: gpu.bf16, torch.float32: single}.get(dtype)
            return tera * 1e12 if tera else None
    return None


@cache
@torch.no_grad()
def _measure_peak(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    """Return the rate of the fastest product of square matrices large enough to take ten milliseconds.

    Other load on the machine lowers the result. Cached, as one process may start many runs.
    """
    size, best, started = 1024, 0.0, time.perf_counter()
    while True:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        _time_matmul(left, right)
        seconds = min(_time_matmul(left, right) for _ in range(5))
        best = max(best, 2 * size**3 / seconds)
        if (seconds > 0.01 and time.perf_counter() - started > _MEASURED_SECONDS) or size >= 16_384:
            return best
        if seconds < 0.02:
            size *= 2


def _time_matmul(left: Tensor, right: Tensor) -> float:
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
