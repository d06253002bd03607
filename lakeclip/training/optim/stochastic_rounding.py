"""Stochastic rounding to bfloat16: up or down by chance, so that the mean is the number that was rounded.

Rounding to the nearest loses every change smaller than half a digit, each time anew: a running average with 1 - β of
0.001 never falls, and a weight no longer learns. By chance such a change is kept as often as it is large (Gupta et al.
2015, arXiv 1502.02551, section 3; Radford et al. 2021, section 2.5, for the text encoder's weights).
"""

from __future__ import annotations

import random

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

#: A bfloat16 is the upper half of a float32.
_LOWER_HALF = 1 << 16


def round_by_chance_(values: Float32[Tensor, "*shape"], bits: Int32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Make each value, in place, one of its two neighbours in bfloat16, the nearer one more often.

    What bfloat16 can hold stays as it is; so do infinities and NaN.

    Args:
        bits: evenly distributed over 0 … 65,535.
    """
    # The bits of some NaNs (those that GPUs make) are so high that the carry would turn them into zeros.
    values.nan_to_num_(torch.nan, torch.inf, -torch.inf)
    # The carry out of the lower half comes as often as the lower half is large; the sign stands apart.
    values.view(torch.int32).add_(bits).bitwise_and_(-_LOWER_HALF)
    return values


class Dice:
    """Random bits for the rounding of many pieces of a step, at the price of one piece.

    One sheet of random numbers is drawn for a step, and each piece of the step turns it by a random number of its own
    (exclusive or). Every number's bits are evenly distributed, independent of those it gets in other steps, and any two
    numbers' bits are independent of each other.

    Args:
        seed, step: the bits are a function of these alone, so that they are the same in every process and after a
            resume; the global random state is neither read nor moved.
        rows, columns: the largest piece.
    """

    def __init__(self, seed: int, step: int, rows: int, columns: int, device: torch.device) -> None:
        # PyTorch's generator on a CPU reads 32 bits of a seed only, so seed and step are mixed first.
        self._turns = random.Random(f"{seed} {step}")
        generator = torch.Generator(device).manual_seed(self._turns.getrandbits(32))
        self._sheet = torch.empty(rows, columns, dtype=torch.int32, device=device)
        self._sheet.random_(0, _LOWER_HALF, generator=generator)
        self._turned = torch.empty_like(self._sheet)

    def throw(self, rows: slice, columns: int) -> Int32[Tensor, "rows columns"]:
        """Bits for a new piece; they hold until the next throw."""
        turned = self._turned[rows, :columns]
        return torch.bitwise_xor(self._sheet[rows, :columns], self._turns.getrandbits(16), out=turned)
