"""Randomness without state: numbers that are a pure function of (seed, epoch, position, …).

A sample's crop and caption are drawn from its key, so they do not depend on which rank or worker makes the batch, nor
on what was drawn before: any batch can be made again.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, UInt64

Keys = UInt64[np.ndarray, "..."]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(bits: Keys) -> Keys:
    """A bijection of 64-bit numbers in which every output bit depends on every input bit (Stafford's variant 13 of
    MurmurHash3's finaliser, as in SplitMix64: Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = bits ^ (bits >> np.uint64(31))
    return mixed


def keys(*coordinates: int | np.ndarray) -> Keys:
    """One key for each combination of coordinates (integers or arrays of them, broadcast against one another).

    Keys that differ in a single coordinate never coincide.
    """
    key: Keys = np.zeros(1, dtype=np.uint64)
    for coordinate in coordinates:
        key = mix((key ^ _as_bits(coordinate)) + _GOLDEN)
    return key


def uniforms(key: Keys, count: int) -> Float64[np.ndarray, "... count"]:
    """For each key, `count` numbers from [0, 1)."""
    streams = keys(key[..., None], np.arange(count))
    return (streams >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _as_bits(coordinate: int | np.ndarray) -> Keys:
    if isinstance(coordinate, np.ndarray):
        return coordinate.astype(np.uint64)
    return np.array([coordinate % 2**64], dtype=np.uint64)
