"""Batches of a user's own dataloader: (images, texts, …), a dict, token ids or captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lakeclip.errors import DataError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import CLIPText, DualEncoder
from lakeclip.text.tokenizer import VOCAB_SIZE, Tokenizer
from lakeclip.types import Tokenize

_IMAGE_KEYS = ("images", "image", "pixel_values")
_TEXT_KEYS = ("texts", "text", "captions", "caption")
_TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_ALLOWED = (
    "(images, texts), or a dict with images (also image, pixel_values) and texts (also text, captions, caption, "
    "input_ids with attention_mask)"
)


class PairBatch(NamedTuple):
    """A batch of pairs with the attributes of `lakeclip.types.Batch`; None for what the dataloader does not give."""

    images: Any
    texts: Any
    rows: Any = None
    positive_ids: Any = None


def as_pairs(batch: Any, *, text_encoder: CLIP | DualEncoder, tokenize: Tokenize | None) -> Any:
    """Return a batch as (images, texts, …), with captions replaced by token ids.

    Args:
        batch: a `lakeclip.types.Batch`, which is returned as it is; a tuple or a list; or a dict.
        text_encoder: the model, whose kind says in which form it takes the texts.
        tokenize: function from captions to token ids.

    Raises:
        DataError: there are no images or no texts, or captions and no tokenizer.
    """
    pairs = read_batch(batch, text_encoder=text_encoder)
    missing = [name for name, value in (("images", pairs[0]), ("texts", pairs[1])) if value is None]
    if missing:
        raise DataError(f"a batch has no {' and no '.join(missing)}", found=_describe(batch), allowed=_ALLOWED)
    images, texts = pairs[0], pairs[1]
    if not isinstance(images, Tensor):
        raise DataError(
            "the images of a batch are not a tensor",
            found=_describe(images),
            allowed="a tensor (batch, 3, height, width)",
            next_step="a collate_fn that stacks them; lakeclip.load(RUN).transform makes a tensor of an image",
        )
    if is_captions(texts):
        texts = tokenize_captions(texts, text_encoder=text_encoder, tokenize=tokenize, device=images.device)
        return PairBatch(images, texts, getattr(pairs, "rows", None), getattr(pairs, "positive_ids", None))
    return pairs


def read_batch(batch: Any, *, text_encoder: CLIP | DualEncoder) -> Any:
    """Return a batch as (images, texts, …); None stands for the side that it lacks."""
    if isinstance(batch, Mapping):
        return _from_mapping(batch, text_encoder)
    if isinstance(batch, Tensor):
        batch = (batch,)
    if not isinstance(batch, Sequence) or isinstance(batch, str) or not len(batch):
        raise DataError("a batch has an unknown form", found=_describe(batch), allowed=_ALLOWED)
    if is_captions(batch):
        return PairBatch(None, batch)
    if len(batch) > 1:
        return batch
    # One column: pixels have four dimensions, token ids two.
    (only,) = batch
    if is_captions(only) or isinstance(only, Mapping) or (isinstance(only, Tensor) and only.ndim < 4):
        return PairBatch(None, only)
    return PairBatch(only, None)


def is_captions(texts: Any) -> bool:
    """Return True for a list or tuple of strings, as PyTorch's dataloader collates captions."""
    return isinstance(texts, (list, tuple)) and bool(texts) and all(isinstance(text, str) for text in texts)


def has_captions(batch: Any, *, text_encoder: CLIP | DualEncoder) -> bool:
    """Return True if the texts of a batch are strings."""
    return is_captions(read_batch(batch, text_encoder=text_encoder)[1])


def default_tokenizer(text_encoder: CLIP | DualEncoder) -> Tokenizer | None:
    """Return CLIP's tokenizer if the model has CLIP's text tower and vocabulary; otherwise None."""
    clip = text_encoder if isinstance(text_encoder, CLIP) else getattr(text_encoder, "text_encoder", None)
    config = clip.clip.config if isinstance(clip, CLIPText) else getattr(clip, "config", None)
    is_clip = isinstance(clip, (CLIP, CLIPText))
    return Tokenizer(config.context_length) if is_clip and config and config.vocab_size == VOCAB_SIZE else None


def tokenize_captions(
    texts: Sequence[str], *, text_encoder: CLIP | DualEncoder, tokenize: Tokenize | None, device: torch.device
) -> Any:
    """Return the token ids of captions on a device.

    Raises:
        DataError: the tokenizer of the text encoder is unknown.
    """
    tokenize = tokenize or default_tokenizer(text_encoder)
    if tokenize is None:
        raise DataError(
            "the captions of a batch cannot be tokenized",
            found="a text encoder without CLIP's vocabulary, and no tokenizer",
            allowed="captions with a tokenizer, or token ids",
            next_step="give the module tokenizer=YOUR_TOKENIZER",
        )
    ids = tokenize(list(texts))
    if isinstance(ids, Tensor):
        return ids.to(device)
    return {name: value.to(device) for name, value in ids.items()}


def _from_mapping(batch: Mapping[str, Any], text_encoder: CLIP | DualEncoder) -> PairBatch:
    images = next((batch[key] for key in _IMAGE_KEYS if key in batch), None)
    texts = next((batch[key] for key in _TEXT_KEYS if key in batch), None)
    if texts is None and "input_ids" in batch:
        takes_ids = isinstance(text_encoder, CLIP) or isinstance(text_encoder.text_encoder, CLIPText)
        texts = batch["input_ids"] if takes_ids else {key: batch[key] for key in _TOKEN_KEYS if key in batch}
    elif isinstance(texts, Tensor) and "attention_mask" in batch and not isinstance(text_encoder, CLIP):
        texts = {"input_ids": texts, "attention_mask": batch["attention_mask"]}
    return PairBatch(images, texts, batch.get("rows"), batch.get("positive_ids"))


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return "a dict with " + (", ".join(map(str, batch)) or "nothing")
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, (list, tuple)):
        return f"a {type(batch).__name__} of " + (", ".join(type(part).__name__ for part in batch[:4]) or "nothing")
    return type(batch).__name__
