"""What passes between the rooms: the batch, and the letters that shapes are written in.

Shape letters: batch, embed (the shared space), context (token positions), height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch on its way to the step. Item 0 is the images and item 1 the texts, as for any dataloader a user brings.

    Attributes:
        images: (batch, 3, height, width). uint8 straight from the decoder, to be normalised on the device;
            floating point if whoever made the batch has normalised already.
        texts: (batch, context) int64 token ids, trimmed to the longest caption; or a Hugging Face `BatchEncoding`.
        rows: (batch,) int64, the row of the lake each sample came from.
        same: (batch, keys) int64, or None. Samples that agree in any column are right answers for each other; 0 agrees
            with nothing.
    """

    images: Tensor
    texts: Any
    rows: Tensor
    same: Tensor | None = None


#: Captions to token ids: a tensor (batch, context) or a Hugging Face `BatchEncoding`.
Tokenize = Callable[[Sequence[str]], Any]
