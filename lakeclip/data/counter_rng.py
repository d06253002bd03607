"""Generate random numbers without state, as a pure function of (seed, epoch, position, …).

A sample's crop and caption are drawn from its key. They do not depend on the rank or worker that builds the batch, nor
on earlier draws, so any batch can be rebuilt.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, UInt64

Keys = UInt64[np.ndarray, "..."]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(bits: Keys) -> Keys:
    """Mix the bits of 64-bit numbers bijectively, so that every output bit depends on every input bit.

    Stafford's variant 13 of MurmurHash3's finaliser, as in SplitMix64 (Steele et al. 2014).
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = bits ^ (bits >> np.uint64(31))
    return mixed


def keys(*coordinates: int | np.ndarray) -> Keys:
    """Return one key for each combination of coordinates (integers or arrays of integers, broadcast together).

    Combinations that differ in exactly one coordinate have different keys.
    """
    key: Keys = np.zeros(1, dtype=np.uint64)
    for coordinate in coordinates:
        key = mix((key ^ _as_bits(coordinate)) + _GOLDEN)
    return key


def uniforms(key: Keys, count: int) -> Float64[np.ndarray, "... count"]:
    """Return `count` numbers from [0, 1) for each key."""
    streams = keys(key[..., None], np.arange(count))
    return (streams >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _as_bits(coordinate: int | np.ndarray) -> Keys:
    if isinstance(coordinate, np.ndarray):
        return coordinate.astype(np.uint64)
    return np.array([coordinate % 2**64], dtype=np.uint64)
