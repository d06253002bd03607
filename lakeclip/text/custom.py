"""Tokenizers that a user passes from Python: lakeclip's, a Hugging Face tokenizer, or any function."""

from __future__ import annotations

import sys
from typing import Any

from lakeclip.errors import ConfigError
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer, tokenize
from lakeclip.types import Tokenize


def as_tokenize(tokenizer: Any) -> Tokenize | None:
    """Return a user's tokenizer as a function from captions to token ids; None stays None.

    Args:
        tokenizer: `lakeclip.tokenize` or a `Tokenizer`, a Hugging Face tokenizer, or any function from a list of
            captions to token ids. Checkpoints can record all but the last.

    Raises:
        ConfigError: it is none of these.
    """
    if tokenizer is None or isinstance(tokenizer, (Tokenizer, HuggingFaceTokenizer)):
        return tokenizer
    if tokenizer is tokenize:
        return Tokenizer()
    # Importing transformers takes long, and without it there is no tokenizer of its own.
    base = getattr(sys.modules.get("transformers"), "PreTrainedTokenizerBase", None)
    if base is not None and isinstance(tokenizer, base):
        return HuggingFaceTokenizer(tokenizer)
    if not callable(tokenizer):
        raise ConfigError(
            "the custom tokenizer cannot be used",
            found=type(tokenizer).__name__,
            allowed="lakeclip.tokenize, a Hugging Face tokenizer, or a function from a list of captions to a tensor "
            "of ids",
        )
    custom: Tokenize = tokenizer
    return custom
