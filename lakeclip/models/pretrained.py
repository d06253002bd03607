"""Towers by name, from the libraries that hold pretrained ones."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from lakeclip.errors import ModelError
from lakeclip.models.zoo import create_model

_IMAGE = "torchvision:NAME, timm:NAME (both pretrained), or lakeclip:NAME (from scratch)"
_TEXT = "hf:NAME or hf:FOLDER, any Hugging Face AutoModel with its tokenizer"


class TextEncoder(NamedTuple):
    """A Hugging Face model and the tokenizer it was trained with."""

    model: nn.Module
    tokenizer: Any


def load_image_encoder(name: str) -> nn.Module:
    """An image tower, images (batch, 3, height, width) → features (batch, dim), its classifier taken off.

    Args:
        name: torchvision:NAME, timm:NAME or lakeclip:NAME.

    Raises:
        ModelError: there is no such model, its library is not installed, or its weights cannot be had.
    """
    library, _, model = name.partition(":")
    if library == "lakeclip" and model:
        return create_model(model).visual
    if library not in ("torchvision", "timm") or not model:
        raise ModelError(f"there is no image encoder {name!r}", allowed=_IMAGE)
    try:
        loaded = import_module(library if library == "timm" else "torchvision.models")
    except ImportError as error:
        raise ModelError(
            f"the image encoder {name!r} needs {library}, which is not installed",
            found=str(error),
            next_step="pip install 'lakeclip[backbones]', or --image-encoder lakeclip:RN50 for a tower from scratch",
        ) from None
    try:
        if library == "timm":
            encoder: nn.Module = loaded.create_model(model, pretrained=True, num_classes=0)
            return encoder
        return _without_classifier(loaded.get_model(model, weights="DEFAULT"))
    except (ValueError, RuntimeError, OSError) as error:
        raise _unobtainable(name, error, _IMAGE) from None


def load_text_encoder(name: str) -> TextEncoder:
    """A text tower and its tokenizer.

    Args:
        name: hf:NAME of a model on the Hugging Face hub, or hf:FOLDER with one saved by `save_pretrained`.

    Raises:
        ModelError: there is no such model, or it cannot be had.
    """
    library, _, model = name.partition(":")
    if library != "hf" or not model:
        raise ModelError(f"there is no text encoder {name!r}", allowed=_TEXT)
    from transformers import AutoModel, AutoTokenizer

    try:
        return TextEncoder(AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model))
    except (OSError, ValueError) as error:
        raise _unobtainable(name, error, _TEXT) from None


def _without_classifier(model: nn.Module) -> nn.Module:
    """torchvision's models end in a linear layer called fc, head, heads or classifier."""
    for name in ("fc", "head", "heads", "classifier"):
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
            return model
    raise ModelError("the image encoder's classifier was not found", found=type(model).__name__)


def _unobtainable(name: str, error: Exception, allowed: str) -> ModelError:
    return ModelError(f"the encoder {name!r} cannot be loaded", found=str(error).splitlines()[0], allowed=allowed)
