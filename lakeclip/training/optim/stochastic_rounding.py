"""Stochastic rounding to bfloat16: up or down at random, so that the expected value is the number before rounding.

Rounding to nearest loses every change smaller than half a unit in the last place: a running average with 1 - β = 0.001
never falls, and a weight stops learning. Stochastic rounding keeps such a change with a probability proportional to its
size (Gupta et al. 2015, arXiv 1502.02551, section 3; Radford et al. 2021, section 2.5, for the text encoder's weights).
"""

from __future__ import annotations

import random

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

#: A bfloat16 is the upper half of a float32.
_LOWER_HALF = 1 << 16


def stochastic_round_(values: Float32[Tensor, "*shape"], bits: Int32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Round each value in place to one of its two neighbours in bfloat16, the nearer one with higher probability.

    Values that bfloat16 represents exactly stay unchanged, as do infinities and NaN.

    Args:
        values: float32 numbers.
        bits: random integers, uniform over 0 … 65,535.
    """
    # Some NaNs, as GPUs produce them, have all bits set, so that the carry would turn them into zeros.
    values.nan_to_num_(torch.nan, torch.inf, -torch.inf)
    # The probability of a carry is proportional to the lower half. The sign bit is not affected.
    values.view(torch.int32).add_(bits).bitwise_and_(-_LOWER_HALF)
    return values


class RoundingBits:
    """Random bits for rounding all chunks of a step, at the cost of one chunk.

    One matrix of random numbers is drawn per step, and each chunk XORs it with a random number of its own. The bits of
    every element are uniformly distributed, independent of those in other steps, and pairwise independent of those of
    other elements.

    Args:
        seed, step: determine the bits, so that they are the same in every process and after a resume; the global
            random state is neither read nor changed.
        rows, columns: size of the largest chunk.
        device: device of the bits.
    """

    def __init__(self, seed: int, step: int, rows: int, columns: int, device: torch.device) -> None:
        # PyTorch's CPU generator uses only 32 bits of a seed, so seed and step are hashed first.
        self._masks = random.Random(f"{seed} {step}")
        generator = torch.Generator(device).manual_seed(self._masks.getrandbits(32))
        self._base = torch.empty(rows, columns, dtype=torch.int32, device=device)
        self._base.random_(0, _LOWER_HALF, generator=generator)
        self._bits = torch.empty_like(self._base)

    def next_bits(self, rows: slice, columns: int) -> Int32[Tensor, "rows columns"]:
        """Return the bits for the next chunk; the buffer is overwritten by the next call."""
        bits = self._bits[rows, :columns]
        return torch.bitwise_xor(self._base[rows, :columns], self._masks.getrandbits(16), out=bits)
