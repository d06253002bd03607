"""Stochastic rounding to bfloat16: up or down by chance, so that the mean is the number that was rounded.

Rounding to the nearest loses every change smaller than half a digit, each time anew: a running average with 1 - β of
0.001 never falls, and a weight no longer learns. By chance such a change is kept as often as it is large (Gupta et al.
2015, arXiv 1502.02551, section 3; Radford et al. 2021, section 2.5, for the text encoder's weights).
"""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float32, Int32
from torch import Tensor

#: A bfloat16 is the upper half of a float32.
_LOWER_HALF = 1 << 16


def round_by_chance(
    values: Float32[Tensor, "*shape"], bits: Int32[Tensor, "*shape"], out: BFloat16[Tensor, "*shape"] | None = None
) -> BFloat16[Tensor, "*shape"]:
    """One of the two neighbours in bfloat16, the nearer one more often. What bfloat16 can hold stays; so do inf and NaN.

    Args:
        values: they are changed in place: to what is returned.
        bits: evenly distributed over 0 … 65,535.
        out: where to write the result.
    """
    lost = values.isnan() if values.device.type != "cpu" else None
    whole = values.view(torch.int32)
    # The carry out of the lower half comes as often as the lower half is large; the sign stands apart.
    whole.add_(bits).bitwise_and_(-_LOWER_HALF)
    if lost is not None:
        values.masked_fill_(lost, torch.nan)
    return values.to(torch.bfloat16) if out is None else out.copy_(values)
