"""Towers by name, from the libraries that hold pretrained ones; and made again, without weights, from what they were.

A tower's origin is a plain dict, kept in checkpoints: "library" and "name", and for those that need them the "config"
that the library makes the same architecture from.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor, nn

from lakeclip.errors import ModelError
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.models.dual_encoder import CLIPText, DualEncoder
from lakeclip.models.zoo import model_config_from_dict

_IMAGE = (
    "torchvision:NAME, timm:NAME, hf:NAME (all pretrained), openai:FILE, open_clip:FILE, lakeclip:CHECKPOINT, "
    "or lakeclip:NAME (from scratch)"
)
_TEXT = (
    "hf:NAME or hf:FOLDER, any Hugging Face AutoModel with its tokenizer; openai:FILE, open_clip:FILE, or "
    "lakeclip:CHECKPOINT"
)


@dataclasses.dataclass(frozen=True)
class TowersConfig:
    """A `DualEncoder` of towers that can be made again by name, as its checkpoint describes it; of plain types.

    Attributes:
        image, text: the towers' origins.
        image_dim: width of the image tower's features.
        image_resolution: side of the images in pixels.
    """

    image: dict[str, Any]
    text: dict[str, Any]
    embed_dim: int
    image_dim: int
    average_word_embeddings: bool
    image_resolution: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


class ImageTower(NamedTuple):
    """Images (batch, 3, image_size, image_size), normalised with mean and std, to features (batch, dim).

    Attributes:
        image_size: side in pixels that it was trained with; others will often do.
    """

    module: nn.Module
    origin: dict[str, Any]
    image_size: int = 224
    mean: tuple[float, float, float] = IMAGE_MEAN
    std: tuple[float, float, float] = IMAGE_STD


class TextTower(NamedTuple):
    """Texts to features; `tokenizer` is the Hugging Face one it was trained with, None for CLIP's own."""

    module: nn.Module
    origin: dict[str, Any]
    tokenizer: Any = None
    context_length: int = 0


def load_image_tower(name: str) -> ImageTower:
    """A pretrained image tower, its classifier taken off.

    Args:
        name: torchvision:NAME, timm:NAME or hf:NAME.

    Raises:
        ModelError: there is no such model, its library is not installed, or its weights cannot be had.
    """
    library, _, model = name.partition(":")
    if library not in ("torchvision", "timm", "hf") or not model:
        raise ModelError(f"there is no image encoder {name!r}", allowed=_IMAGE)
    loaded = _library(library, name)
    try:
        if library == "timm":
            encoder = loaded.create_model(model, pretrained=True, num_classes=0)
            data = import_module("timm.data").resolve_model_data_config(encoder)
            return ImageTower(encoder, _origin(library, model), data["input_size"][-1], data["mean"], data["std"])
        if library == "hf":
            return _from_hub(loaded, model)
        weights = loaded.get_model_weights(model).DEFAULT
        preset = weights.transforms()
        encoder = _without_classifier(loaded.get_model(model, weights=weights))
        size = preset.crop_size[0]
        return ImageTower(encoder, _origin(library, model), size, tuple(preset.mean), tuple(preset.std))
    except (ValueError, RuntimeError, OSError) as error:
        raise _unobtainable(name, error, _IMAGE) from None


def load_text_tower(name: str) -> TextTower:
    """A pretrained text tower and its tokenizer.

    Args:
        name: hf:NAME of a model on the Hugging Face hub, or hf:FOLDER with one saved by `save_pretrained`.

    Raises:
        ModelError: there is no such model, or it cannot be had.
    """
    library, _, model = name.partition(":")
    if library != "hf" or not model:
        raise ModelError(f"there is no text encoder {name!r}", allowed=_TEXT)
    try:
        with _quietly():
            transformers = _library("hf", name)
            encoder = transformers.AutoModel.from_pretrained(model)
            tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise _unobtainable(name, error, _TEXT) from None
    return TextTower(encoder, _origin("hf", model, encoder.config.to_dict()), tokenizer)


def image_tower_of(model: CLIP, name: str) -> ImageTower:
    """The image tower of a CLIP."""
    return ImageTower(
        model.visual, _origin("clip", name, dataclasses.asdict(model.config)), model.config.image_resolution
    )


def text_tower_of(model: CLIP, name: str) -> TextTower:
    """The text tower of a CLIP, which loses its other one."""
    origin = _origin("clip", name, dataclasses.asdict(model.config))
    return TextTower(CLIPText(model), origin, context_length=model.config.context_length)


def remake_image_encoder(origin: dict[str, Any]) -> nn.Module:
    """The architecture of an image tower, with random weights.

    Raises:
        ModelError: its library is not installed, or does not know it any more.
    """
    library, name = str(origin["library"]), str(origin["name"])
    if library == "clip":
        return CLIP(model_config_from_dict(name, origin["config"])).visual
    loaded = _library(library, f"{library}:{name}")
    try:
        if library == "timm":
            encoder: nn.Module = loaded.create_model(name, pretrained=False, num_classes=0)
            return encoder
        if library == "hf":
            return HuggingFaceImages(
                loaded.AutoModel.from_config(_hub_config(loaded, origin["config"]), trust_remote_code=False)
            )
        return _without_classifier(loaded.get_model(name, weights=None))
    except (ValueError, RuntimeError) as error:
        raise _unobtainable(f"{library}:{name}", error, "a library that still knows it") from None


def remake_text_encoder(origin: dict[str, Any]) -> nn.Module:
    """The architecture of a text tower, with random weights."""
    if origin["library"] == "clip":
        return CLIPText(CLIP(model_config_from_dict(str(origin["name"]), origin["config"])))
    transformers = _library("hf", str(origin["name"]))
    encoder: nn.Module = transformers.AutoModel.from_config(
        _hub_config(transformers, origin["config"]), trust_remote_code=False
    )
    return encoder


def remake(config: TowersConfig) -> DualEncoder:
    """The two towers and their heads, with random weights.

    Raises:
        ModelError: a library is not installed, or does not know a tower any more.
    """
    return DualEncoder(
        remake_image_encoder(config.image),
        remake_text_encoder(config.text),
        embed_dim=config.embed_dim,
        average_word_embeddings=config.average_word_embeddings,
        image_dim=config.image_dim,
        image_mean=config.image_mean,
        image_std=config.image_std,
    )


class HuggingFaceImages(nn.Module):
    """A Hugging Face vision model as images → (batch, dim): its pooled output, or its first token's hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Of a model with two towers, the one that sees.
        self.model: nn.Module = getattr(model, "vision_model", model)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(pixel_values=images)
        pooled: Tensor | None = getattr(outputs, "pooler_output", None)
        return outputs.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _from_hub(transformers: Any, model: str) -> ImageTower:
    with _quietly():
        encoder = HuggingFaceImages(transformers.AutoModel.from_pretrained(model))
    config: Any = encoder.model.config
    size = getattr(config, "image_size", None) or 224
    mean, std = IMAGE_MEAN, IMAGE_STD
    try:
        # Its settings alone: a processor may need torchvision to be made.
        reader = import_module("transformers.image_processing_base").ImageProcessingMixin
        settings, _ = reader.get_image_processor_dict(model)
        mean, std = tuple(settings.get("image_mean", mean)), tuple(settings.get("image_std", std))
    except (OSError, ValueError):
        # Saved without one; ImageNet's numbers or CLIP's make little difference to a tower that is trained on.
        pass
    return ImageTower(encoder, _origin("hf", model, config.to_dict()), int(size), mean, std)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without a bar for each file, and without warnings about kernels that other libraries found no use for."""
    logging.disable(logging.WARNING)
    try:
        if not sys.stderr.isatty():
            import_module("transformers.utils.logging").disable_progress_bar()
        yield
    finally:
        logging.disable(logging.NOTSET)


#: What a tower's origin may name, and the module that is. A checkpoint may be a stranger's: nothing else is imported.
_MODULES = {"torchvision": "torchvision.models", "timm": "timm", "hf": "transformers"}


def _library(library: str, name: str) -> Any:
    if library not in _MODULES:
        raise ModelError(f"the encoder {name!r} is of no library that lakeclip knows", allowed=", ".join(_MODULES))
    try:
        return import_module(_MODULES[library])
    except ImportError as error:
        raise ModelError(
            f"the image encoder {name!r} needs {library}, which is not installed",
            found=str(error),
            next_step="pip install 'lakeclip[backbones]', or --image-encoder lakeclip:RN50 for a tower from scratch",
        ) from None


def _origin(library: str, name: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"library": library, "name": name, "config": _plain(config or {})}


def _plain(value: Any) -> Any:
    """Of types that a checkpoint may hold."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _hub_config(transformers: Any, values: dict[str, Any]) -> Any:
    rest = {name: value for name, value in values.items() if name not in ("dtype", "torch_dtype")}
    return transformers.AutoConfig.for_model(rest.pop("model_type"), **rest)


def _without_classifier(model: nn.Module) -> nn.Module:
    """torchvision's models end in a linear layer called fc, head, heads or classifier."""
    for name in ("fc", "head", "heads", "classifier"):
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
            return model
    raise ModelError("the image encoder's classifier was not found", found=type(model).__name__)


def _unobtainable(name: str, error: Exception, allowed: str) -> ModelError:
    return ModelError(f"the encoder {name!r} cannot be loaded", found=str(error).splitlines()[0], allowed=allowed)
