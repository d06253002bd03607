"""Hash the values that rows may share, so that rows with the same value are positives instead of false negatives.

The hashes are the same in every process, run and version. They are never 0, which marks a missing value.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from lakeclip.lake.rows import Row

#: Hash of a missing value, which matches nothing.
MISSING = 0


def compute_positive_ids(row: Row, caption: str, same_by: Sequence[str]) -> list[int]:
    """Return one hash for each name in `same_by`: `image`, `caption`, or the row's extra columns in order."""
    columns = iter(row.extras)
    return [
        stable_hash(row.image if name == "image" else caption if name == "caption" else next(columns))
        for name in same_by
    ]


def stable_hash(value: object) -> int:
    """Return a signed 64-bit hash of a value, or `MISSING` for None, empty and NaN.

    A number and a text that prints the same have the same hash.
    """
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return MISSING
    content = value if isinstance(value, bytes) else _bytes(value)
    if not content:
        return MISSING
    # In batches of 32,768 rows, two different values collide once in about 30 billion batches.
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True) or 1


def _bytes(value: object) -> bytes:
    if isinstance(value, np.ndarray) and value.ndim:
        return value.tobytes()
    return str(value).encode("utf-8", "surrogatepass")
