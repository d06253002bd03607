"""Types that packages exchange: the batch and the tokenizer interface.

Names in shapes: batch, embed (the shared space), context (token positions), height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of pairs. Item 0 is the images and item 1 the texts, as in batches of a user's own dataloader.

    Attributes:
        images: (batch, 3, height, width). uint8 from the decoder, to be normalised on the device, or floating point if
            they are normalised already.
        texts: (batch, context) int64 token ids, trimmed to the longest caption; or a Hugging Face `BatchEncoding`.
        rows: (batch,) int64, the row of the lake from which each sample was read.
        positive_ids: (batch, keys) int64, or None. Samples that share a value in any column are positives of each
            other; 0 means missing.
    """

    images: Tensor
    texts: Any
    rows: Tensor
    positive_ids: Tensor | None = None


#: A function from captions to token ids: a tensor (batch, context) or a Hugging Face `BatchEncoding`.
Tokenize = Callable[[Sequence[str]], Any]
