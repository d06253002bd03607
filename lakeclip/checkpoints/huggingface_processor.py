"""Convert the settings of transformers' image processors for CLIP and SigLIP to those of a `ModelConfig`, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lakeclip.checkpoints.convert import NotNativeError
from lakeclip.checkpoints.huggingface_config import CLIP_FAMILY, SIGLIP_FAMILY, Family, read_json
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import IMAGE_MEAN, IMAGE_STD

PROCESSOR = "preprocessor_config.json"
#: File of newer versions of transformers, which has the image processor's settings inside.
_PROCESSORS = "processor_config.json"

#: Settings of transformers' classes that a file need not repeat.
_DEFAULTS: dict[str, dict[str, Any]] = {
    CLIP_FAMILY.model_type: {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
    },
    SIGLIP_FAMILY.model_type: {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
}
_COMMON = {
    "do_resize": True,
    "resample": 3,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
#: Settings without effect on images that are RGB already, as lakeclip's are, or on what the model gets.
_WITHOUT_EFFECT = frozenset(
    (
        *("data_format", "default_to_square", "device", "disable_grouping", "do_convert_rgb"),
        *("feature_extractor_type", "image_processor_type", "image_seq_length", "input_data_format"),
        *("processor_class", "return_tensors", "_processor_class", "_valid_processor_keys"),
    )
)
#: Filters of Pillow by number.
_FILTERS = {2: "bilinear", 3: "bicubic"}
_FILTER_NUMBERS = {name: number for number, name in _FILTERS.items()}


def read_processing(folder: Path, family: Family, image_size: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read how a model's images are made: the fields of `ModelConfig`, and what had to be assumed.

    Args:
        folder: the model's folder.
        family: kind of the model.
        image_size: side of the images that the model takes.

    Raises:
        CheckpointError: the settings are invalid, unknown, or do not fit the model.
        NotNativeError: lakeclip's own preprocessing cannot do what they say.
    """
    found = _read_settings(folder)
    if found is None:
        defaults = _DEFAULTS[family.model_type] | {"size": _default_size(family, image_size)}
        assumed = f"images prepared as for {family.architecture} by default: there is no {PROCESSOR} in {folder.name}"
        return _fields(defaults | {"crop_size": image_size}, folder / PROCESSOR, family, image_size), (assumed,)
    file, settings = found
    kind = settings.get("image_processor_type", settings.get("feature_extractor_type", ""))
    families = [name for name in _DEFAULTS if str(kind).lower().startswith(name)]
    if kind and not families:
        raise NotNativeError(
            f"lakeclip's own preprocessing cannot make the images of {folder}",
            found=f"{kind} in {file.name}",
            allowed="CLIPImageProcessor, SiglipImageProcessor",
        )
    defaults = _DEFAULTS[families[0] if families else family.model_type] | _COMMON
    unknown = {
        name: value
        for name, value in settings.items()
        if name not in defaults and name not in _WITHOUT_EFFECT and value not in (None, False)
    }
    if unknown:
        raise CheckpointError(
            f"{file} has a setting that lakeclip does not know, so the images might differ",
            found=", ".join(f"{name}: {json.dumps(value)[:60]}" for name, value in list(unknown.items())[:5]),
            allowed=", ".join(defaults),
            next_step="if it has no effect on the images, remove it from the file",
        )
    given = {name: value for name, value in settings.items() if value is not None}
    return _fields(defaults | given, file, family, image_size), ()


def processor_content(family: Family, config: ModelConfig) -> dict[str, Any]:
    """Return the content of preprocessor_config.json for a model.

    Raises:
        CheckpointError: transformers' image processors cannot make the model's images.
    """
    size = config.image_resolution
    if config.resize_mode not in ("shortest", "squash"):
        raise CheckpointError(
            f"this model cannot be exported to Hugging Face: {family.architecture}'s processor makes other images",
            found=f"resize_mode {config.resize_mode!r}",
            allowed="resize_mode 'shortest' or 'squash'",
            next_step="--to open_clip",
        )
    square = {"height": size, "width": size}
    kind = family.architecture.removesuffix("Model")
    crop = config.resize_mode == "shortest"
    # Every setting is written, also those that are defaults: defaults may change.
    return {
        "image_processor_type": f"{'CLIP' if crop else kind}ImageProcessor",
        "processor_class": f"{kind}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size} if crop else square,
        "resample": _FILTER_NUMBERS[config.interpolation],
        "do_center_crop": crop,
        **({"crop_size": square} if crop or family is CLIP_FAMILY else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def _default_size(family: Family, image_size: int) -> Any:
    return {"shortest_edge": image_size} if family is CLIP_FAMILY else {"height": image_size, "width": image_size}


def _read_settings(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the file that has the image processor's settings, and the settings; None if there is none."""
    file = folder / _PROCESSORS
    if file.is_file() and isinstance(settings := read_json(file).get("image_processor"), dict):
        return file, settings
    file = folder / PROCESSOR
    return (file, read_json(file)) if file.is_file() else None


def _fields(settings: Mapping[str, Any], file: Path, family: Family, image_size: int) -> dict[str, Any]:
    settings = _COMMON | dict(settings)
    if not settings["do_resize"]:
        raise _not_native(file, "do_resize false", "do_resize true")
    if settings["resample"] not in _FILTERS:
        allowed = ", ".join(f"{number} ({name})" for number, name in _FILTERS.items())
        raise _not_native(file, f"resample {settings['resample']!r}", allowed)
    size = _size(file, "size", settings["size"], to_square=family is SIGLIP_FAMILY)
    crop = _size(file, "crop_size", settings["crop_size"], to_square=True) if settings["do_center_crop"] else None
    square = {"height": image_size, "width": image_size}
    mode = "squash" if "height" in size else "shortest"
    result = crop or (size if mode == "squash" else None)
    if result is None:
        raise _not_native(file, f"size {json.dumps(size)} without a crop", "do_center_crop true, or height and width")
    if result != square:
        raise CheckpointError(
            f"{file} makes other images than the model in the same folder takes",
            found=f"{result['height']} × {result['width']} pixels (height × width)",
            allowed=f"{image_size} × {image_size}, the image_size of the model's configuration",
        )
    if size != (square if mode == "squash" else {"shortest_edge": image_size}):
        raise _not_native(
            file,
            f"size {json.dumps(size)}, of which {image_size} pixels are cropped",
            "a size equal to that of the crop",
        )
    mean, std = (_channels(file, name, settings[name]) for name in ("image_mean", "image_std"))
    if not settings["do_normalize"]:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise _invalid(file, f"rescale_factor: {json.dumps(factor)}", "a number above 0")
    if not all(value > 0 for value in std):
        raise _invalid(file, f"image_std: {json.dumps(std)}", "numbers above 0")
    if abs(255 * factor - 1) > 1e-6:
        # (factor · pixel - mean) / std is (pixel / 255 - mean / scale) / (std / scale).
        scale = 255 * factor
        mean, std = _scaled(mean, 1 / scale), _scaled(std, 1 / scale)
    return {
        "resize_mode": mode,
        "interpolation": _FILTERS[settings["resample"]],
        "image_mean": mean,
        "image_std": std,
    }


def _size(file: Path, name: str, value: Any, *, to_square: bool) -> dict[str, int]:
    """Convert a size, one number or an object, to {"shortest_edge": n} or {"height": n, "width": n}."""
    if type(value) is int:
        value = {"height": value, "width": value} if to_square else {"shortest_edge": value}
    elif isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    parts = {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else {}
    if set(parts) not in ({"shortest_edge"}, {"height", "width"}) or (name == "crop_size" and len(parts) == 1):
        allowed = '{"height": n, "width": n}' + (' or {"shortest_edge": n}' if name == "size" else "")
        raise _not_native(file, f"{name} {json.dumps(value)}", allowed)
    if not all(type(part) is int and part > 0 for part in parts.values()):
        raise _invalid(file, f"{name}: {json.dumps(value)}", "numbers of pixels")
    return parts


def _channels(file: Path, name: str, value: Any) -> tuple[float, float, float]:
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(values, (list, tuple)) or len(values) != 3 or any(type(v) not in (int, float) for v in values):
        raise _invalid(file, f"{name}: {json.dumps(value)[:60]}", "three numbers: red, green, blue")
    red, green, blue = values
    return float(red), float(green), float(blue)


def _scaled(values: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    red, green, blue = values
    return red * factor, green * factor, blue * factor


def _invalid(file: Path, found: str, allowed: str) -> CheckpointError:
    return CheckpointError(f"{file} is not a configuration that lakeclip can use", found=found, allowed=allowed)


def _not_native(file: Path, found: str, allowed: str) -> NotNativeError:
    return NotNativeError(
        f"lakeclip's own preprocessing cannot make the images that {file} describes", found=found, allowed=allowed
    )
