"""open_clip's weights (github.com/mlfoundations/open_clip): OpenAI's names, with the text tower under `text.` in some.

open_clip makes more models than lakeclip. Those whose weights look different are told by their names. The others are
not: GELU in place of QuickGELU, which is what most of open_clip's own models have; heads that are not 64 wide; a text
feature that is not the end of text's. What open_clip writes beside the weights, open_clip_config.json, tells them.
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

from lakeclip.checkpoints.foreign import Foreign, read_state_dict, recognise
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.models.vision_transformer import HEAD_WIDTH

LAYOUT = "open_clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

#: What `CustomTextCLIP` calls text.X is X in OpenAI's layout.
_TEXT = re.compile(
    r"text\.(token_embedding\.|positional_embedding$|transformer\.resblocks\.|ln_final\.|text_projection$)"
)

#: Names that only models of other kinds have.
_OTHER_KINDS = {
    "an image tower of timm": r"visual\.trunk\.|visual\.head\.",
    "a text tower of Hugging Face": r"text\.(transformer\.(?!resblocks\.)|proj\.|pooler\.)",
    "CoCa, which writes captions": r"text_decoder\.|text\.cls_emb$|cls_emb$",
    "attentional pooling": r"visual\.attn_pool",
    "a text projection with a bias": r"(text\.)?text_projection\.",
    "LayerScale": r".*\.ls_[12]\.gamma$",
    "normalised or scaled attention": r".*\.(attn\.(ln_|logit_scale|head_scale)|ln_attn\.|mlp\.ln\.)",
    "a model in the layout of Hugging Face": r"(vision_model|text_model)\.",
}

#: Heads of open_clip's larger image towers, by the towers' widths. All others are 64 wide.
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}

#: What a configuration says and weights do not, as lakeclip computes it. All but the first are open_clip's defaults.
_COMPUTED: dict[str, dict[str, Any]] = {
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


def read_open_clip(path: str | Path) -> Foreign:
    """Read weights in open_clip's layout without making the model.

    What weights do not tell is taken from open_clip_config.json in the same folder, which open_clip writes for every
    model that it publishes. A model that lakeclip would compute differently is refused, most of all one whose
    `quick_gelu` is not true: lakeclip computes QuickGELU, and with another activation every feature is wrong, if only
    by a little, so a warning would not do. (open_clip leaves `quick_gelu` out of what it saves with OpenAI's weights.
    Those are read by `read_openai`, which says what they are.)

    Without that file QuickGELU and heads 64 wide are assumed, and `assumed` says so: show it to the user.

    Args:
        path: a state dict saved by `torch.save` or as safetensors, or a checkpoint of open_clip's training. Both of its
            classes, `CLIP` and `CustomTextCLIP`, are read; those trained with the sigmoid objective too.

    Raises:
        CheckpointError: missing, damaged, no weights alone, or a model that lakeclip cannot compute exactly.
    """
    path = Path(path)
    weights = read_state_dict(path, LAYOUT)
    for kind, pattern in _OTHER_KINDS.items():
        if keys := [key for key in weights if re.match(pattern, key)]:
            raise CheckpointError(
                f"{path} holds a model that lakeclip cannot make: {kind}",
                found=f"{', '.join(keys[:3])}" + (f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""),
                allowed="open_clip's own VisionTransformer or ModifiedResNet, and its own text transformer",
            )
    weights = _renamed(weights)
    beside = path.parent / CONFIG
    if beside.is_file():
        return recognise(path, LAYOUT, weights, heads=_text_heads(path, beside))
    return recognise(path, LAYOUT, weights, assumed=_assumed(path, weights))


def write_open_clip(model: CLIP, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder that open_clip loads as "local-dir:FOLDER": configuration and weights.

    Args:
        folder: is made if it is not there.
        dtype: of the weights.
    """
    config = model.config
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


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        name = key.removeprefix("text.") if _TEXT.match(key) else key
        renamed[key if name in weights else name] = value
    return renamed


def _assumed(path: Path, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What is taken for granted where no configuration says it."""
    patches = weights.get("visual.conv1.weight")
    if "visual.positional_embedding" in weights and patches is not None and len(patches) in _HEAD_WIDTHS:
        width = len(patches)
        raise CheckpointError(
            f"{path} holds a model that lakeclip cannot make: open_clip's image towers {width} wide have other heads",
            found=f"heads {_HEAD_WIDTHS[width]} wide",
            allowed=f"heads {HEAD_WIDTH} wide",
            next_step=f'if this one has those, {CONFIG} beside it, with "head_width": {HEAD_WIDTH} in its "vision_cfg"',
        )
    return (
        f"QuickGELU: there is no {CONFIG} beside {path.name} to tell it from GELU, and weights do not",
        f"attention heads {HEAD_WIDTH} wide",
    )


def _text_heads(path: Path, beside: Path) -> int:
    """Check a configuration, and return the one size in it that weights do not tell."""
    parts = _read_config(beside)
    wrong, right = [], []
    for part, computed in _COMPUTED.items():
        for setting, value in computed.items():
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
            f"lakeclip would compute other features than open_clip with {path}",
            found="; ".join(wrong) + f", says {CONFIG} beside it",
            allowed="; ".join(right),
            next_step=f"if these are OpenAI's own weights, which have QuickGELU: openai:{path}" if gelu else "",
        )
    heads = parts["text_cfg"].get("heads", _DEFAULT_TEXT_HEADS)
    if not isinstance(heads, int) or heads < 1:
        raise CheckpointError(f"{beside} is wrong", found=f"heads: {json.dumps(heads)}", allowed="a number of heads")
    return heads


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The parts of a configuration, as `_COMPUTED` has them."""
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
            f"{path} is not a configuration of open_clip's",
            found=f"no {' and no '.join(missing)}",
            next_step="move it away if it belongs to something else",
        )
    return parts
