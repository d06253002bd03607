"""Convert open_clip_config.json, which stands beside a model's weights, to settings of `ModelConfig`, and back.

A missing field has open_clip's default. A field is believed if lakeclip's model honours it, ignored if it has no effect
on the features, and refused otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lakeclip.checkpoints.convert import NotNativeError
from lakeclip.checkpoints.huggingface_config import read_json
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import IMAGE_MEAN, IMAGE_STD
from lakeclip.models.vision_transformer import HEAD_WIDTH
from lakeclip.text.cleaning import Cleaning

CONFIG = "open_clip_config.json"

#: Settings of a SigLIP in open_clip, whose image tower is timm's.
_SIGLIP = {
    "vision_pool": "map",
    "vision_class_token": False,
    "vision_patch_bias": True,
    "ln_pre": False,
    "vision_projection": "none",
}


class TimmTower(NamedTuple):
    """A vision transformer of timm with attention pooling.

    Attributes:
        width, layers, heads, mlp_width: of the tower.
        patch_size, image_size: sides in pixels.
        activation: as in `ModelConfig`.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_size: int
    image_size: int
    activation: str


def _timm_towers() -> dict[str, TimmTower]:
    sizes = {
        "base": (768, 12, 12, 3072),
        "large": (1024, 24, 16, 4096),
        "so400m": (1152, 27, 16, 4304),
        "giantopt": (1536, 40, 16, 6144),
    }
    towers = (
        *(("base", 32, 256, "gelu_tanh"), ("base", 16, 224, "gelu"), ("base", 16, 256, "gelu")),
        *(("base", 16, 384, "gelu"), ("base", 16, 512, "gelu"), ("large", 16, 256, "gelu")),
        *(("large", 16, 384, "gelu"), ("large", 16, 512, "gelu_tanh"), ("so400m", 14, 224, "gelu")),
        *(("so400m", 14, 378, "gelu"), ("so400m", 14, 384, "gelu"), ("so400m", 16, 256, "gelu_tanh")),
        *(("so400m", 16, 384, "gelu_tanh"), ("so400m", 16, 512, "gelu_tanh")),
        *(("giantopt", 16, 256, "gelu_tanh"), ("giantopt", 16, 384, "gelu_tanh")),
    )
    return {
        f"vit_{size}_patch{patch}_siglip_{image}": TimmTower(*sizes[size], patch, image, activation)
        for size, patch, image, activation in towers
    }


#: timm's names → the towers that lakeclip's image transformer computes; a name does not reveal the activation.
TIMM_TOWERS = _timm_towers()

#: Sizes, which the weights reveal.
_SIZES = {
    "model_cfg": ("embed_dim",),
    "vision_cfg": ("layers", "width", "mlp_ratio", "patch_size"),
    "text_cfg": ("context_length", "vocab_size", "width", "layers", "mlp_ratio"),
}
_CUSTOM_BLOCK = {
    "ls_init_value": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
#: Settings with the values that lakeclip's model computes, which are open_clip's defaults.
_ONLY: dict[str, dict[str, Any]] = {
    "model_cfg": {"multimodal_cfg": None},
    "vision_cfg": {"attentional_pool": False, "final_ln_after_pool": False, "pos_embed_type": "learnable"}
    | _CUSTOM_BLOCK,
    "text_cfg": {"hf_model_name": None, "embed_cls": False, "final_ln_after_pool": False, "tokenizer_mode": None}
    | _CUSTOM_BLOCK,
    "preprocess_cfg": {"mode": "RGB", "fill_color": 0},
}
#: Settings that are read below, with open_clip's defaults.
_READ: dict[str, dict[str, Any]] = {
    "model_cfg": {"quick_gelu": False},
    "vision_cfg": {
        "image_size": None,
        "head_width": 64,
        "pool_type": "tok",
        "no_ln_pre": False,
        "act_kwargs": None,
        "norm_kwargs": None,
        "timm_model_name": None,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "heads": 8,
        "pool_type": "argmax",
        "eos_id": 2,
        "no_causal_mask": False,
        "proj_bias": False,
        "proj_type": "linear",
        "act_kwargs": None,
        "norm_kwargs": None,
        "hf_tokenizer_name": None,
        "tokenizer_kwargs": None,
    },
    "preprocess_cfg": {
        "mean": list(IMAGE_MEAN),
        "std": list(IMAGE_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
#: Settings without effect on the features, or only for other towers.
_WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "model_cfg": (
        *("vision_cfg", "text_cfg", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"),
        *("cast_dtype", "output_dict"),
    ),
    "vision_cfg": (
        *("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained"),
        *("timm_proj_bias", "timm_drop", "timm_drop_path"),
    ),
    "text_cfg": ("output_tokens", "pad_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    "preprocess_cfg": ("size",),
}

_POOLS = {"argmax": "eot", "eos": "eot", "last": "last", "first": "first"}


class OpenClipSettings(NamedTuple):
    """Settings that weights do not reveal.

    Attributes:
        settings: fields of `ModelConfig`.
        heads: attention heads of the text tower.
        timm: True if the image tower has timm's names.
        tokenizer: name of a tokenizer of Hugging Face; None for CLIP's own.
        cleaning: how captions are cleaned before that tokenizer.
    """

    settings: dict[str, Any]
    heads: int
    timm: bool
    tokenizer: str | None
    cleaning: Cleaning


def read_settings(file: Path) -> OpenClipSettings:
    """Read a configuration.

    Raises:
        CheckpointError: invalid, or with a field that lakeclip does not know.
        NotNativeError: a model that lakeclip's own networks cannot compute.
    """
    parts = _read_parts(file)
    model, vision, text, images = (parts[part] for part in _READ)
    settings = _image_settings(file, vision) | _text_settings(file, text)
    quick = bool(model["quick_gelu"])
    text_activation = _activation(file, "text_cfg", quick, text["act_kwargs"])
    if vision["timm_model_name"] is None:
        settings["activation"] = _activation(file, "vision_cfg", quick, vision["act_kwargs"])
        image_eps = _eps(file, "vision_cfg", vision["norm_kwargs"])
    else:
        tower = TIMM_TOWERS[vision["timm_model_name"]]
        settings["activation"], image_eps = tower.activation, 1e-6
    settings["text_activation"] = None if text_activation == settings["activation"] else text_activation
    settings["layer_norm_eps"] = _eps(file, "text_cfg", text["norm_kwargs"])
    if image_eps != settings["layer_norm_eps"]:
        raise _not_native(file, f"eps {settings['layer_norm_eps']} of texts, {image_eps} of images", "one eps for both")
    settings |= _image_processing(file, images)
    tokenizer, cleaning = _tokenizer(file, text)
    return OpenClipSettings(
        settings, _whole(file, "heads", text["heads"]), vision["timm_model_name"] is not None, tokenizer, cleaning
    )


def _image_settings(file: Path, vision: Mapping[str, Any]) -> dict[str, Any]:
    size = vision["image_size"]
    if isinstance(size, list) and len(set(size)) > 1:
        raise _not_native(file, f"image_size {json.dumps(size)} in vision_cfg", "square images")
    size = size[0] if isinstance(size, list) and size else size
    settings: dict[str, Any] = {"image_resolution": _whole(file, "image_size", size)} if size is not None else {}
    if (name := vision["timm_model_name"]) is not None:
        tower = TIMM_TOWERS.get(str(name))
        if tower is None or vision["timm_pool"] != "map" or vision["timm_proj"] not in ("none", "", None):
            found = f"timm_model_name {name!r}, timm_pool {vision['timm_pool']!r}, timm_proj {vision['timm_proj']!r}"
            allowed = "vit_…_siglip_… of timm with timm_pool 'map' and timm_proj 'none'"
            raise _not_native(file, f"{found} in vision_cfg", allowed)
        if settings.get("image_resolution", tower.image_size) != tower.image_size:
            raise _not_native(file, f"image_size {size} with timm_model_name {name!r}", str(tower.image_size))
        return settings | _SIGLIP | {"vision_heads": tower.heads, "image_resolution": tower.image_size}
    head_width, pools = _whole(file, "head_width", vision["head_width"]), {"tok": "class", "avg": "average"}
    if vision["pool_type"] not in pools:
        raise _not_native(file, f"pool_type {vision['pool_type']!r} in vision_cfg", "tok, avg")
    settings["vision_pool"] = pools[vision["pool_type"]]
    settings["ln_pre"] = not vision["no_ln_pre"]
    return settings | {"head_width": head_width}


def _text_settings(file: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    if text["pool_type"] not in _POOLS:
        raise _not_native(file, f"pool_type {text['pool_type']!r} in text_cfg", ", ".join(_POOLS))
    projection = "none" if text["proj_type"] == "none" else "linear" if text["proj_bias"] else "matrix"
    return {
        "text_pool": _POOLS[text["pool_type"]],
        "end_token": _whole(file, "eos_id", text["eos_id"]) if text["pool_type"] == "eos" else None,
        "causal": not text["no_causal_mask"],
        "text_projection": projection,
    }


def _image_processing(file: Path, images: Mapping[str, Any]) -> dict[str, Any]:
    if images["interpolation"] not in ("bicubic", "bilinear"):
        raise _not_native(file, f"interpolation {images['interpolation']!r} in preprocess_cfg", "bicubic, bilinear")
    if images["resize_mode"] not in ("shortest", "squash", "longest"):
        allowed = "shortest, squash, longest"
        raise _not_native(file, f"resize_mode {images['resize_mode']!r} in preprocess_cfg", allowed)
    for name in ("mean", "std"):
        numbers = images[name]
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(n, (int, float)) for n in numbers):
            raise _invalid(file, f"{name}: {json.dumps(numbers)} in preprocess_cfg", "three numbers")
    return {
        "image_mean": tuple(float(value) for value in images["mean"]),
        "image_std": tuple(float(value) for value in images["std"]),
        "interpolation": images["interpolation"],
        "resize_mode": images["resize_mode"],
    }


def _tokenizer(file: Path, text: Mapping[str, Any]) -> tuple[str | None, Cleaning]:
    name, options = text["hf_tokenizer_name"], text["tokenizer_kwargs"] or {}
    cleaning = options.get("clean", "whitespace" if name else "lower")
    others = [option for option, value in options.items() if option != "clean" and value not in (None, False)]
    if others or cleaning not in (("whitespace", "lower", "canonicalize") if name else ("lower",)):
        raise _not_native(file, f"tokenizer_kwargs {json.dumps(options)} in text_cfg", '"clean" alone')
    return (str(name) if name else None), cleaning


def config_content(config: ModelConfig, *, bias: float | None, tokenizer: str | None) -> dict[str, Any]:
    """Return the content of open_clip_config.json for a model.

    Args:
        bias: the model's logit bias.
        tokenizer: name of the model's tokenizer; None for CLIP's own.

    Raises:
        CheckpointError: open_clip has no model that computes the same.
    """
    vision: dict[str, Any] = {"image_size": config.image_resolution}
    timm = None if config.vision_class_token else timm_name(config)
    if timm is not None:
        vision |= {"timm_model_name": timm, "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
    else:
        vision |= _own_tower(config)
    text: dict[str, Any] = {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.transformer_width,
        "heads": config.transformer_heads,
        "layers": config.transformer_layers,
    }
    if config.transformer_mlp_width is not None:
        text["mlp_ratio"] = _mlp_ratio(config.transformer_width, config.transformer_mlp_width)
    if config.text_pool != "eot":
        text["pool_type"] = config.text_pool
    elif config.end_token is not None:
        text |= {"pool_type": "eos", "eos_id": config.end_token}
    if not config.causal:
        text["no_causal_mask"] = True
    if config.text_projection == "none":
        text["proj_type"] = "none"
    elif config.text_projection == "linear":
        text["proj_bias"] = True
    if config.layer_norm_eps != 1e-5:
        text["norm_kwargs"] = {"eps": config.layer_norm_eps}
        if timm is None:
            vision["norm_kwargs"] = {"eps": config.layer_norm_eps}
    activation = config.text_activation or config.activation
    if activation == "gelu_tanh":
        text["act_kwargs"] = {"approximate": "tanh"}
    if tokenizer is not None:
        text["hf_tokenizer_name"] = tokenizer
    model: dict[str, Any] = {"embed_dim": config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if activation == "quick_gelu":
        model["quick_gelu"] = True
    if timm is not None:
        model["custom_text"] = True
    if bias is not None:
        model["init_logit_bias"] = bias
    return {
        "model_cfg": model,
        "preprocess_cfg": {
            "size": config.image_resolution,
            "mode": "RGB",
            "mean": list(config.image_mean),
            "std": list(config.image_std),
            "interpolation": config.interpolation,
            "resize_mode": config.resize_mode,
        },
    }


def timm_name(config: ModelConfig) -> str:
    """Return timm's name of a SigLIP's image tower.

    Raises:
        CheckpointError: timm has none of these sizes.
    """
    mlp_width = config.vision_mlp_width or 4 * config.vision_width
    heads = config.vision_heads or config.vision_width // HEAD_WIDTH
    tower = (config.vision_width, config.vision_layers, heads, mlp_width, config.vision_patch_size)
    wanted = (*tower, config.image_resolution, config.activation)
    names = [name for name, known in TIMM_TOWERS.items() if tuple(known) == wanted]
    siglip = _SIGLIP | {"layer_norm_eps": 1e-6}
    different = [f"{name} {getattr(config, name)}" for name, value in siglip.items() if getattr(config, name) != value]
    if different or not names:
        raise CheckpointError(
            "this model cannot be exported to open_clip, which takes image towers without a class token from timm",
            found="; ".join(different) or "sizes and activation of which timm has no tower for SigLIP",
            allowed=", ".join(TIMM_TOWERS),
            next_step="--to huggingface or --to safetensors",
        )
    return names[0]


def _own_tower(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of vision_cfg for open_clip's own image towers."""
    layers, heads = config.vision_layers, config.vision_heads
    vision: dict[str, Any] = {
        "layers": layers if isinstance(layers, int) else list(layers),
        "width": config.vision_width,
    }
    if config.vision_patch_size is not None:
        vision["patch_size"] = config.vision_patch_size
    found = [
        *(["vision_pool map"] if config.vision_pool == "map" else []),
        *(["vision_patch_bias true"] if config.vision_patch_bias else []),
        *(["vision_projection none"] if config.vision_projection == "none" else []),
        *(
            ["text_activation other than activation"]
            if (config.text_activation or config.activation) != config.activation
            and "quick_gelu" in (config.text_activation, config.activation)
            else []
        ),
    ]
    if found:
        raise CheckpointError(
            "this model cannot be exported to open_clip, whose own image tower has no such setting",
            found="; ".join(found),
            next_step="--to huggingface or --to safetensors",
        )
    if heads is not None:
        vision["head_width"] = config.vision_width // heads
    if config.vision_mlp_width is not None:
        vision["mlp_ratio"] = _mlp_ratio(config.vision_width, config.vision_mlp_width)
    if config.vision_pool == "average":
        vision["pool_type"] = "avg"
    if not config.ln_pre:
        vision["no_ln_pre"] = True
    if config.activation == "gelu_tanh":
        vision["act_kwargs"] = {"approximate": "tanh"}
    return vision


def _mlp_ratio(width: int, mlp_width: int) -> float:
    """Return the ratio from which open_clip computes the MLP's width, by int(width * ratio)."""
    ratio = round(mlp_width / width, 4)
    return ratio if int(width * ratio) == mlp_width else (mlp_width + 0.5) / width


def _activation(file: Path, part: str, quick: bool, options: Any) -> str:
    if quick and options is None:
        return "quick_gelu"
    known = {"none": "gelu", "tanh": "gelu_tanh"}
    approximate = (options or {}).get("approximate", "none") if isinstance(options or {}, dict) else None
    if quick or approximate not in known or set(options or {}) - {"approximate"}:
        given = json.dumps(options) + (" with quick_gelu" if quick else "")
        raise _not_native(file, f"act_kwargs {given} in {part}", '{"approximate": "tanh"} without quick_gelu')
    return known[approximate]


def _eps(file: Path, part: str, options: Any) -> float:
    options = options or {}
    eps = options.get("eps", 1e-5) if isinstance(options, dict) else None
    if not isinstance(eps, float) or not 0 < eps < 1 or set(options) - {"eps"}:
        raise _not_native(file, f"norm_kwargs {json.dumps(options)} in {part}", '"eps" alone, above 0')
    return eps


def _whole(file: Path, name: str, value: Any) -> int:
    if type(value) is not int or value < 0 or (value < 1 and name != "eos_id"):
        raise _invalid(file, f"{name}: {json.dumps(value)}", "a whole number from 1 on")
    return value


def _read_parts(file: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of a configuration: every setting in `_READ`, with its default if it is missing."""
    content = read_json(file)
    model = content.get("model_cfg", content)
    model = model if isinstance(model, dict) else {}
    given = {
        "model_cfg": model,
        "vision_cfg": model.get("vision_cfg"),
        "text_cfg": model.get("text_cfg"),
        "preprocess_cfg": content.get("preprocess_cfg") or {},
    }
    if missing := [name for name, part in given.items() if not isinstance(part, dict)]:
        raise CheckpointError(
            f"{file} is not a configuration of open_clip",
            found=f"no {' and no '.join(missing)}",
            next_step="move it away if it belongs to something else",
        )
    unknown, other = [], []
    for part, values in given.items():
        assert isinstance(values, dict)
        only, known = _ONLY[part], {*_READ[part], *_WITHOUT_EFFECT[part], *_SIZES.get(part, ())}
        if model is content and part == "model_cfg":
            known.add("preprocess_cfg")
        for name, value in values.items():
            if name in only and value != only[name] and not (value is None and not only[name]):
                other.append(f"{name}: {json.dumps(value)[:60]} in {part}")
            elif name not in only and name not in known and value not in (None, False):
                unknown.append(f"{name}: {json.dumps(value)[:60]} in {part}")
    if other:
        raise _not_native(file, "; ".join(other), "open_clip's own CLIP, or its SigLIP with timm's image tower")
    if unknown:
        raise CheckpointError(
            f"{file} has a setting that lakeclip does not know, so the features might differ",
            found="; ".join(unknown),
            next_step="if it has no effect on the features, remove it from the file",
        )
    return {
        part: {
            name: default if (value := (given[part] or {}).get(name, default)) is None else value
            for name, default in defaults.items()
        }
        for part, defaults in _READ.items()
    }


def _not_native(file: Path, found: str, allowed: str) -> NotNativeError:
    return NotNativeError(
        f"lakeclip's own model cannot compute the features of {file.parent}",
        found=f"{found}, according to {CONFIG}",
        allowed=allowed,
    )


def _invalid(file: Path, found: str, allowed: str) -> CheckpointError:
    return CheckpointError(f"{file} is invalid", found=found, allowed=allowed)
