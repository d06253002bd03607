"""Read and write open_clip's layout (github.com/mlfoundations/open_clip).

The names are OpenAI's; some files have the text tower under `text.`. open_clip supports more models than lakeclip. Some
differ in their weights' names. Others do not: those with GELU instead of QuickGELU (most of open_clip's own models),
with heads that are not 64 wide, or with another text feature than that of the end-of-text token. For these, the reader
checks open_clip_config.json, which open_clip writes beside the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lakeclip.checkpoints.convert import PretrainedWeights, parse_weights, read_state_dict, unsupported_settings
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.models.vision_transformer import HEAD_WIDTH

LAYOUT = "open_clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

#: Names text.X of `CustomTextCLIP` that are X in OpenAI's layout.
_TEXT = re.compile(
    r"text\.(token_embedding\.|positional_embedding$|transformer\.resblocks\.|ln_final\.|text_projection$)"
)

#: Unsupported kinds of models, by names that only they have.
_UNSUPPORTED = {
    "an image tower of timm": r"visual\.trunk\.|visual\.head\.",
    "a text tower of Hugging Face": r"text\.(transformer\.(?!resblocks\.)|proj\.|pooler\.)",
    "CoCa, which writes captions": r"text_decoder\.|text\.cls_emb$|cls_emb$",
    "attentional pooling": r"visual\.attn_pool",
    "a text projection with a bias": r"(text\.)?text_projection\.",
    "LayerScale": r".*\.ls_[12]\.gamma$",
    "normalised or scaled attention": r".*\.(attn\.(ln_|logit_scale|head_scale)|ln_attn\.|mlp\.ln\.)",
    "a model in the layout of Hugging Face": r"(vision_model|text_model)\.",
}

#: Width of the heads of open_clip's larger image towers, by the tower's width. All other heads are 64 wide.
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}

#: Settings that weights do not reveal, with the values that lakeclip implements. All but the first are open_clip's
#: defaults.
_SUPPORTED: dict[str, dict[str, Any]] = {
    "model_cfg": {"quick_gelu": True},
    "vision_cfg": {
        "head_width": HEAD_WIDTH,
        "pool_type": "tok",
        "no_ln_pre": False,
        "final_ln_after_pool": False,
        "act_kwargs": None,
        "norm_kwargs": None,
    },
    "text_cfg": {
        "pool_type": "argmax",
        "no_causal_mask": False,
        "final_ln_after_pool": False,
        "act_kwargs": None,
        "norm_kwargs": None,
        "hf_tokenizer_name": None,
        "tokenizer_kwargs": None,
    },
    "preprocess_cfg": {"mean": list(IMAGE_MEAN), "std": list(IMAGE_STD)},
}
_DEFAULT_TEXT_HEADS = 8


def read_open_clip(path: str | Path) -> PretrainedWeights:
    """Read weights in open_clip's layout without building the model.

    Settings that weights do not reveal are read from open_clip_config.json in the same folder, which open_clip writes
    for every model that it publishes. A model that lakeclip would compute differently is rejected, in particular one
    without `quick_gelu`: with another activation every feature is slightly wrong, so a warning would not suffice.
    (open_clip omits `quick_gelu` when it saves OpenAI's weights. Read those with `read_openai`.)

    Without that file, QuickGELU and heads 64 wide are assumed. The result's `assumed` says so: show it to the user.

    Args:
        path: a state dict by `torch.save` or safetensors, or a checkpoint of open_clip's training. Its classes `CLIP`
            and `CustomTextCLIP` are supported, also if trained with the sigmoid objective.

    Raises:
        CheckpointError: missing, damaged, not only weights, or a model that lakeclip cannot reproduce exactly.
    """
    path = Path(path)
    weights = read_state_dict(path, LAYOUT)
    for kind, pattern in _UNSUPPORTED.items():
        if keys := [key for key in weights if re.match(pattern, key)]:
            raise CheckpointError(
                f"{path} contains a model that lakeclip does not support: {kind}",
                found=f"{', '.join(keys[:3])}" + (f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""),
                allowed="open_clip's own VisionTransformer or ModifiedResNet, and its own text transformer",
            )
    weights = _rename_text_keys(weights)
    config_file = path.parent / CONFIG
    if config_file.is_file():
        return parse_weights(path, LAYOUT, weights, heads=_text_heads(path, config_file))
    return parse_weights(path, LAYOUT, weights, assumed=_assumptions(path, weights))


def write_open_clip(model: CLIP, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder with configuration and weights, which open_clip loads as "local-dir:FOLDER".

    Args:
        folder: created if missing.
        dtype: type of the weights.

    Raises:
        CheckpointError: lakeclip cannot write the model's settings in this layout.
    """
    config = model.config
    if different := unsupported_settings(config):
        raise CheckpointError(
            "this model cannot be exported to open_clip's layout, for which lakeclip writes OpenAI's settings only",
            found=different,
            next_step="--to huggingface or --to safetensors",
        )
    layers = config.vision_layers
    content: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": config.image_resolution,
                "layers": layers if isinstance(layers, int) else list(layers),
                "width": config.vision_width,
                "patch_size": config.vision_patch_size,
            },
            "text_cfg": {
                "context_length": config.context_length,
                "vocab_size": config.vocab_size,
                "width": config.transformer_width,
                "heads": config.transformer_heads,
                "layers": config.transformer_layers,
            },
        },
        "preprocess_cfg": {
            "size": config.image_resolution,
            "mode": "RGB",
            "mean": list(IMAGE_MEAN),
            "std": list(IMAGE_STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    if config.vision_patch_size is None:
        del content["model_cfg"]["vision_cfg"]["patch_size"]
    if model.logit_bias is not None:
        content["model_cfg"]["init_logit_bias"] = float(model.logit_bias.detach())
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.to(dtype).contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _rename_text_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        name = key.removeprefix("text.") if _TEXT.match(key) else key
        renamed[key if name in weights else name] = value
    return renamed


def _assumptions(path: Path, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """List the assumptions about weights without a configuration.

    Raises:
        CheckpointError: the image tower has a width for which open_clip uses heads that lakeclip does not support.
    """
    patch_embedding = weights.get("visual.conv1.weight")
    if (
        "visual.positional_embedding" in weights
        and patch_embedding is not None
        and len(patch_embedding) in _HEAD_WIDTHS
    ):
        width = len(patch_embedding)
        raise CheckpointError(
            f"{path} contains a model that lakeclip does not support: open_clip's image towers of width {width}",
            found=f"heads {_HEAD_WIDTHS[width]} wide",
            allowed=f"heads {HEAD_WIDTH} wide",
            next_step=f'if its heads are {HEAD_WIDTH} wide: put "head_width": {HEAD_WIDTH} in "vision_cfg" of {CONFIG}',
        )
    return (
        f"QuickGELU, not GELU: the weights do not tell, and there is no {CONFIG} beside {path.name}",
        f"attention heads {HEAD_WIDTH} wide",
    )


def _text_heads(path: Path, config_file: Path) -> int:
    """Check a configuration, and return the text tower's number of heads, the one size that weights do not reveal."""
    parts = _read_config(config_file)
    wrong, right = [], []
    for part, supported in _SUPPORTED.items():
        for setting, value in supported.items():
            given = parts[part].get(setting, False if setting == "quick_gelu" else value)
            if given != value:
                wrong.append(f"{setting}: {json.dumps(given)} in {part}")
                right.append(f"{setting}: {json.dumps(value)}")
    size = parts["vision_cfg"].get("image_size")
    if isinstance(size, list) and len(set(size)) > 1:
        wrong.append(f"image_size: {json.dumps(size)} in vision_cfg")
        right.append("square images")
    if wrong:
        gelu = "quick_gelu" in wrong[0]
        raise CheckpointError(
            f"lakeclip and open_clip would compute different features from {path}",
            found="; ".join(wrong) + f", according to {CONFIG} beside it",
            allowed="; ".join(right),
            next_step=f"if these are OpenAI's own weights, which have QuickGELU: openai:{path}" if gelu else "",
        )
    heads = parts["text_cfg"].get("heads", _DEFAULT_TEXT_HEADS)
    if not isinstance(heads, int) or heads < 1:
        raise CheckpointError(
            f"{config_file} is invalid", found=f"heads: {json.dumps(heads)}", allowed="a number of heads"
        )
    return heads


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of a configuration that `_SUPPORTED` lists."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", found=str(error).splitlines()[0]) from None
    content = content if isinstance(content, dict) else {}
    model = content.get("model_cfg", content)
    model = model if isinstance(model, dict) else {}
    parts = {
        "model_cfg": model,
        "vision_cfg": model.get("vision_cfg"),
        "text_cfg": model.get("text_cfg"),
        "preprocess_cfg": content.get("preprocess_cfg", {}),
    }
    if missing := [name for name, part in parts.items() if not isinstance(part, dict)]:
        raise CheckpointError(
            f"{path} is not a configuration of open_clip",
            found=f"no {' and no '.join(missing)}",
            next_step="move it away if it belongs to something else",
        )
    return parts
