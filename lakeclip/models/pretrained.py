"""Pretrained towers by name from torchvision, timm and transformers, and their architectures rebuilt from checkpoints.

A tower's origin is a plain dict that checkpoints store: "library" and "name", and, if the library needs it, the
"config" from which it builds the same architecture.
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
from lakeclip.models.dual_encoder import READ_PADDING, CLIPText, DualEncoder
from lakeclip.models.zoo import model_config_from_dict

_IMAGE = (
    "torchvision:NAME, timm:NAME, hf:NAME (all pretrained), openai:FILE, open_clip:FILE, lakeclip:CHECKPOINT, "
    "or lakeclip:NAME (from scratch)"
)
#: Names of the classifier in torchvision's models.
_CLASSIFIERS = ("fc", "head", "heads", "classifier")
_TEXT = (
    "hf:NAME or hf:FOLDER, any Hugging Face AutoModel with its tokenizer; openai:FILE, open_clip:FILE, or "
    "lakeclip:CHECKPOINT"
)


@dataclasses.dataclass(frozen=True)
class TowersConfig:
    """Description of a `DualEncoder` in its checkpoint, from which its towers are rebuilt; all values have plain types.

    Attributes:
        image, text: the towers' origins.
        image_dim: width of the image tower's features.
        image_resolution: side of the square images in pixels.
    """

    image: dict[str, Any]
    text: dict[str, Any]
    embed_dim: int
    image_dim: int
    average_word_embeddings: bool
    image_resolution: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class OwnTowersConfig:
    """Description of a `DualEncoder` whose towers a user made in Python, so that only the user can build them again.

    Attributes:
        image_class, text_class: names of the towers' classes.
        image_dim: width of the image tower's features.
        image_resolution: side of the square images in pixels.
    """

    image_class: str
    text_class: str
    embed_dim: int
    image_dim: int
    average_word_embeddings: bool
    image_resolution: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @classmethod
    def of(cls, model: DualEncoder) -> OwnTowersConfig:
        """Describe a model."""
        # The buffers are float32, or less after a conversion of the model.
        mean, std = (
            tuple(round(float(value), 4) for value in values.tolist()) for values in (model.image_mean, model.image_std)
        )
        return cls(
            type(model.image_encoder).__name__,
            type(model.text_encoder).__name__,
            embed_dim=model.embed_dim,
            image_dim=model.image_dim,
            average_word_embeddings=model.average_word_embeddings,
            image_resolution=model.image_size,
            image_mean=mean,
            image_std=std,
        )

    def differences(self, other: OwnTowersConfig) -> list[str]:
        """List the settings that the weights do not show, and in which two models differ: "name this, not other"."""
        found = []
        for name in ("average_word_embeddings", "image_resolution"):
            this, that = getattr(self, name), getattr(other, name)
            found += [f"{name} {this}, not {that}"] if this != that else []
        for name in ("image_mean", "image_std"):
            this, that = getattr(self, name), getattr(other, name)
            # Half precision has three digits.
            if any(abs(a - b) > 3e-3 for a, b in zip(this, that, strict=True)):
                found.append(f"{name} {tuple(this)}, not {tuple(that)}")
        return found


class ImageTower(NamedTuple):
    """An image tower: normalised images (batch, 3, image_size, image_size) → features (batch, dim).

    Attributes:
        image_size: side of its training images in pixels; other sizes often work too.
        mean, std: statistics with which the images must be normalised.
    """

    module: nn.Module
    origin: dict[str, Any]
    image_size: int = 224
    mean: tuple[float, float, float] = IMAGE_MEAN
    std: tuple[float, float, float] = IMAGE_STD


class TextTower(NamedTuple):
    """A text tower: texts → features.

    Attributes:
        tokenizer: its Hugging Face tokenizer, or None for CLIP's own.
        context_length: number of tokens to which every caption is padded; 0 to pad to the longest of a batch.
    """

    module: nn.Module
    origin: dict[str, Any]
    tokenizer: Any = None
    context_length: int = 0


def load_image_tower(name: str) -> ImageTower:
    """Load a pretrained image tower without its classifier.

    Args:
        name: torchvision:NAME, timm:NAME or hf:NAME.

    Raises:
        ModelError: the model does not exist, its library is not installed, or its weights cannot be downloaded.
    """
    library, _, model = name.partition(":")
    if library not in ("torchvision", "timm", "hf") or not model:
        raise ModelError(f"unknown image encoder {name!r}", allowed=_IMAGE)
    loaded = _import_library(library, name)
    try:
        if library == "timm":
            encoder = loaded.create_model(model, pretrained=True, num_classes=0)
            data = import_module("timm.data").resolve_model_data_config(encoder)
            return ImageTower(encoder, _origin(library, model), data["input_size"][-1], data["mean"], data["std"])
        if library == "hf":
            return _load_from_hub(loaded, model)
        weights = loaded.get_model_weights(model).DEFAULT
        preset = weights.transforms()
        encoder = loaded.get_model(model, weights=weights)
        options = _torchvision_options(encoder)
        size = preset.crop_size[0]
        origin = _origin(library, model, {"options": options, "classifier": "last layer"})
        return ImageTower(_remove_last_layer(encoder), origin, size, tuple(preset.mean), tuple(preset.std))
    except (ValueError, RuntimeError, OSError) as error:
        raise _load_error(name, error, _IMAGE) from None


def load_text_tower(name: str) -> TextTower:
    """Load a pretrained text tower and its tokenizer.

    Args:
        name: hf:NAME of a model on the Hugging Face hub, or hf:FOLDER that `save_pretrained` wrote.

    Raises:
        ModelError: the model does not exist, or cannot be downloaded.
    """
    library, _, model = name.partition(":")
    if library != "hf" or not model:
        raise ModelError(f"unknown text encoder {name!r}", allowed=_TEXT)
    try:
        with suppress_output():
            transformers = _import_library("hf", name)
            encoder = transformers.AutoModel.from_pretrained(model)
            tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise _load_error(name, error, _TEXT) from None
    origin = _origin("hf", model, encoder.config.to_dict())
    length = encoder.config.max_position_embeddings if encoder.config.model_type in READ_PADDING else 0
    return TextTower(encoder, origin, tokenizer, length)


def clip_image_tower(model: CLIP, name: str) -> ImageTower:
    """Return the image tower of a CLIP."""
    config = model.config
    origin = _origin("clip", name, dataclasses.asdict(config))
    return ImageTower(model.visual, origin, config.image_resolution, config.image_mean, config.image_std)


def clip_text_tower(model: CLIP, name: str) -> TextTower:
    """Return the text tower of a CLIP, and delete the CLIP's image tower."""
    origin = _origin("clip", name, dataclasses.asdict(model.config))
    return TextTower(CLIPText(model), origin, context_length=model.config.context_length)


def rebuild_image_encoder(origin: dict[str, Any]) -> nn.Module:
    """Build the architecture of an image tower with random weights.

    Raises:
        ModelError: its library is not installed, or no longer has the model.
    """
    library, name = str(origin["library"]), str(origin["name"])
    if library == "clip":
        return CLIP(model_config_from_dict(name, origin["config"])).visual
    loaded = _import_library(library, f"{library}:{name}")
    try:
        if library == "timm":
            encoder: nn.Module = loaded.create_model(name, pretrained=False, num_classes=0)
            return encoder
        if library == "hf":
            return HuggingFaceImageEncoder(
                loaded.AutoModel.from_config(_config_from_dict(loaded, origin["config"]), trust_remote_code=False)
            )
        settings = origin["config"] if isinstance(origin["config"], dict) else {}
        stored = settings.get("options")
        known = ("aux_logits", "transform_input")
        options = {name: bool(stored[name]) for name in known if name in stored} if isinstance(stored, dict) else {}
        encoder = loaded.get_model(name, weights=None, **options, **({"init_weights": False} if options else {}))
        # Checkpoints of earlier versions have towers without the whole classifier.
        is_old = settings.get("classifier") != "last layer"
        return _remove_classifier(encoder) if is_old else _remove_last_layer(encoder)
    except (ValueError, TypeError, RuntimeError) as error:
        raise _load_error(f"{library}:{name}", error, "a version of the library that has it") from None


def rebuild_text_encoder(origin: dict[str, Any]) -> nn.Module:
    """Build the architecture of a text tower with random weights.

    Raises:
        ModelError: transformers is not installed.
    """
    if origin["library"] == "clip":
        return CLIPText(CLIP(model_config_from_dict(str(origin["name"]), origin["config"])))
    transformers = _import_library("hf", str(origin["name"]))
    encoder: nn.Module = transformers.AutoModel.from_config(
        _config_from_dict(transformers, origin["config"]), trust_remote_code=False
    )
    return encoder


def rebuild_dual_encoder(config: TowersConfig) -> DualEncoder:
    """Build both towers and their heads with random weights.

    Raises:
        ModelError: a library is not installed, or no longer has a tower.
    """
    return DualEncoder(
        rebuild_image_encoder(config.image),
        rebuild_text_encoder(config.text),
        embed_dim=config.embed_dim,
        average_word_embeddings=config.average_word_embeddings,
        image_dim=config.image_dim,
        image_size=config.image_resolution,
        image_mean=config.image_mean,
        image_std=config.image_std,
    )


class HuggingFaceImageEncoder(nn.Module):
    """A Hugging Face vision model: images → (batch, dim), its pooled output or its first token's hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # A model with two towers has its image tower here.
        self.model: nn.Module = getattr(model, "vision_model", model)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(pixel_values=images)
        pooled: Tensor | None = getattr(outputs, "pooler_output", None)
        return outputs.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _load_from_hub(transformers: Any, model: str) -> ImageTower:
    with suppress_output():
        encoder = HuggingFaceImageEncoder(transformers.AutoModel.from_pretrained(model))
    config: Any = encoder.model.config
    size = getattr(config, "image_size", None) or 224
    mean, std = IMAGE_MEAN, IMAGE_STD
    try:
        # Read the settings only: building the processor may need torchvision.
        mixin = import_module("transformers.image_processing_base").ImageProcessingMixin
        settings, _ = mixin.get_image_processor_dict(model)
        mean, std = tuple(settings.get("image_mean", mean)), tuple(settings.get("image_std", std))
    except (OSError, ValueError):
        # The model has no image processor. CLIP's statistics are close enough for a tower that is trained further.
        pass
    return ImageTower(encoder, _origin("hf", model, config.to_dict()), int(size), mean, std)


@contextmanager
def suppress_output(*, quiet: bool = False) -> Iterator[None]:
    """Disable other libraries' warnings about unused weights, and progress bars unless they are of use on a terminal.

    Args:
        quiet: suppress progress bars on a terminal too.
    """
    logging.disable(logging.WARNING)
    try:
        if quiet or not sys.stderr.isatty():
            import_module("transformers.utils.logging").disable_progress_bar()
        yield
    finally:
        logging.disable(logging.NOTSET)


#: Libraries that an origin may name, and their modules. Nothing else is imported, because checkpoints are untrusted.
_MODULES = {"torchvision": "torchvision.models", "timm": "timm", "hf": "transformers"}


def _import_library(library: str, name: str) -> Any:
    if library not in _MODULES:
        raise ModelError(f"the encoder {name!r} is of an unknown library", allowed=", ".join(_MODULES))
    try:
        return import_module(_MODULES[library])
    except ImportError as error:
        raise ModelError(
            f"the image encoder {name!r} needs {library}, which is not installed",
            found=str(error),
            next_step="pip install 'lakeclip[backbones]', or --image-encoder lakeclip:RN50 for a tower from scratch",
        ) from None


def _origin(library: str, name: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"library": library, "name": name, "config": _to_plain_types(config or {})}


def _to_plain_types(value: Any) -> Any:
    """Convert a value to the plain types that a checkpoint may hold."""
    if isinstance(value, dict):
        return {str(key): _to_plain_types(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain_types(part) for part in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _config_from_dict(transformers: Any, values: dict[str, Any]) -> Any:
    options = {name: value for name, value in values.items() if name not in ("dtype", "torch_dtype")}
    return transformers.AutoConfig.for_model(options.pop("model_type"), **options)


def _torchvision_options(model: Any) -> dict[str, bool]:
    """Return the options of GoogLeNet and Inception that their weights decide; they lose their further classifiers.

    Those are not used without labels, and would get no gradient.
    """
    if not hasattr(model, "aux_logits"):
        return {}
    model.aux_logits = False
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(model, name):
            setattr(model, name, None)
    return {"aux_logits": False, "transform_input": bool(model.transform_input)}


def _remove_last_layer(model: nn.Module) -> nn.Module:
    """Replace the last linear layer of a torchvision model by the identity, with the dropout before it.

    A classifier of several layers keeps the others: VGG its hidden layers, ConvNeXt its normalisation. That of
    SqueezeNet is a convolution, which becomes the average over the map.
    """
    name = next((name for name in _CLASSIFIERS if hasattr(model, name)), None)
    classifier = getattr(model, name) if name is not None else None
    if name is None or not isinstance(classifier, nn.Sequential):
        return _remove_classifier(model)
    layers = list(classifier)
    if any(isinstance(layer, nn.Conv2d) for layer in layers):
        setattr(model, name, nn.AdaptiveAvgPool2d(1))
        return model
    while layers and not isinstance(layers[-1], nn.Linear):
        layers.pop()
    layers = layers[:-1]
    while layers and isinstance(layers[-1], nn.Dropout):
        layers.pop()
    setattr(model, name, nn.Sequential(*layers) if layers else nn.Identity())
    return model


def _remove_classifier(model: nn.Module) -> nn.Module:
    """Replace the whole classifier of a torchvision model by the identity."""
    for name in _CLASSIFIERS:
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
            return model
    raise ModelError("cannot find the classifier of the image encoder", found=type(model).__name__)


def _load_error(name: str, error: Exception, allowed: str) -> ModelError:
    return ModelError(f"the encoder {name!r} cannot be loaded", found=str(error).splitlines()[0], allowed=allowed)
