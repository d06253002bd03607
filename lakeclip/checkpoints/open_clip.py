"""Read and write open_clip's layout (github.com/mlfoundations/open_clip).

The names are OpenAI's; some files have the text tower under `text.`, and SigLIP's image tower has timm's names. What
the weights do not reveal, such as the activation or the width of a head, is in open_clip_config.json, which open_clip
writes beside the weights (see `open_clip_config`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lakeclip.checkpoints.convert import NotNativeError, PretrainedWeights, parse_weights, read_state_dict
from lakeclip.checkpoints.huggingface_tokenizer import MissingTokenizer, has_tokenizer, load_tokenizer
from lakeclip.checkpoints.open_clip_config import CONFIG, OpenClipSettings, config_content, read_settings
from lakeclip.checkpoints.open_clip_names import from_open_clip, from_timm, to_custom_text, to_timm
from lakeclip.errors import CheckpointError
from lakeclip.hub import find_weights, resolve_folder
from lakeclip.models.clip import CLIP
from lakeclip.models.vision_transformer import HEAD_WIDTH
from lakeclip.text.huggingface import HuggingFaceTokenizer, file_bytes
from lakeclip.text.tokenizer import VOCAB_SIZE
from lakeclip.types import Tokenize

LAYOUT = "open_clip"
WEIGHTS = "open_clip_model.safetensors"

#: Models that lakeclip's own networks do not compute, by names of weights that only they have.
_NOT_NATIVE = {
    "an image tower of timm": r"visual\.(head|trunk\.(?!(patch_embed\.proj|pos_embed|blocks|norm|attn_pool)\b))",
    "a text tower of Hugging Face": r"text\.(transformer\.(?!resblocks\.)|proj\.|pooler\.)",
    "CoCa, which writes captions": r"text_decoder\.|text\.cls_emb$|cls_emb$",
    "attentional pooling": r"visual\.attn_pool",
    "LayerScale": r".*\.ls_?[12]\.gamma$",
    "normalised or scaled attention": r".*\.(attn\.(ln_|logit_scale|head_scale)|ln_attn\.|mlp\.ln\.)",
    "a model in the layout of Hugging Face": r"(vision_model|text_model)\.",
}
#: Names of weights of models that lakeclip computes, if a configuration says how.
_NEEDS_CONFIG = {
    "an image tower of timm": r"visual\.trunk\.",
    "a text projection with a bias": r"(text\.)?text_projection\.",
}

#: Width of the heads of open_clip's larger image towers, by the tower's width. All other heads are 64 wide.
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def read_open_clip(path: str | Path) -> PretrainedWeights:
    """Read weights in open_clip's layout without building the model.

    Settings that weights do not reveal are read from open_clip_config.json in the same folder, which open_clip writes
    for every model that it publishes. Without that file, QuickGELU and heads 64 wide are assumed. The result's
    `assumed` says so: show it to the user.

    Args:
        path: a folder with weights and configuration; a state dict by `torch.save` or safetensors, or a checkpoint of
            open_clip's training; or a model's name on the Hugging Face hub (org/name).

    Raises:
        CheckpointError: missing, damaged, not only weights, or with settings that lakeclip does not know.
        NotNativeError: a model that lakeclip's own networks cannot compute.
    """
    path = resolve_folder(path, LAYOUT)
    if path.is_dir():
        path = find_weights(path, LAYOUT) or path
    weights = read_state_dict(path, LAYOUT)
    _check_names(path, weights, _NOT_NATIVE, "open_clip's own CLIP, or its SigLIP with timm's image tower")
    config_file = path.parent / CONFIG
    if not config_file.is_file():
        needed = f"a model that its weights describe; others need {CONFIG} beside them"
        _check_names(path, weights, _NEEDS_CONFIG, needed)
        weights = from_open_clip(weights)
        return parse_weights(path, LAYOUT, weights, assumed=_assumptions(path, weights))
    described = read_settings(config_file)
    weights = from_open_clip(weights)
    weights = from_timm(weights) if described.timm else weights
    found = parse_weights(
        path, LAYOUT, weights, heads=described.heads, settings=_settings(config_file, described, weights)
    )
    return _with_tokenizer(found, described)


def _settings(file: Path, described: OpenClipSettings, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Return a configuration's settings, with the number of heads that follows from their width."""
    settings = dict(described.settings)
    head_width = settings.pop("head_width", None)
    if head_width in (None, HEAD_WIDTH):
        return settings
    if "visual.positional_embedding" not in weights:
        raise NotNativeError(
            f"lakeclip's own model cannot compute the features of {file.parent}",
            found=f"a ResNet with heads {head_width} wide, according to {CONFIG}",
            allowed=f"head_width {HEAD_WIDTH}",
        )
    width = len(weights["visual.conv1.weight"]) if "visual.conv1.weight" in weights else 0
    return settings | {"vision_heads": width // head_width}


def _with_tokenizer(found: PretrainedWeights, described: OpenClipSettings) -> PretrainedWeights:
    """Add the model's tokenizer, and the id with which it pads."""
    config, folder = found.model_config, found.path.parent
    if described.tokenizer is None:
        if config.vocab_size >= VOCAB_SIZE:
            return found
        reason = f"CLIP's, which has {VOCAB_SIZE:,} tokens; the model has {config.vocab_size:,}"
        return found.with_tokenizer(MissingTokenizer(folder, reason))
    if not has_tokenizer(folder):
        reason = f"a folder without the tokenizer {described.tokenizer}, which {CONFIG} names"
        return found.with_tokenizer(MissingTokenizer(folder, reason))
    tokenizer = load_tokenizer(folder, config, described.cleaning)
    return found.with_tokenizer(tokenizer, pad_token=int(tokenizer.tokenizer.pad_token_id))


def write_open_clip(
    model: CLIP, folder: Path, *, dtype: torch.dtype = torch.float32, tokenizer: Tokenize | None = None
) -> None:
    """Write a folder with configuration and weights, which open_clip loads as "local-dir:FOLDER".

    Args:
        folder: created if missing.
        dtype: type of the weights.
        tokenizer: the model's tokenizer. Default: CLIP's own.

    Raises:
        CheckpointError: open_clip has no model that computes the same.
    """
    files: dict[str, bytes] = {}
    name = None
    if isinstance(tokenizer, HuggingFaceTokenizer):
        files = {file: file_bytes(text) for file, text in tokenizer.files().items()}
        # open_clip reads the files beside the configuration, whatever the name; the one at hand may be a local path.
        name = "tokenizer"
    bias = None if model.logit_bias is None else float(model.logit_bias.detach())
    content = config_content(model.config, bias=bias, tokenizer=name)
    if (cleaning := getattr(tokenizer, "cleaning", "none")) != "none":
        content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": cleaning}
    weights = dict(model.state_dict())
    if content["model_cfg"].get("custom_text"):
        weights = to_custom_text(to_timm(weights))
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.to(dtype).contiguous() if value.is_floating_point() else value for name, value in weights.items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    for file, data in files.items():
        (folder / file).write_bytes(data)
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _check_names(path: Path, weights: Mapping[str, Tensor], kinds: Mapping[str, str], allowed: str) -> None:
    for kind, pattern in kinds.items():
        if keys := [key for key in weights if re.match(pattern, key)]:
            raise NotNativeError(
                f"{path} contains a model that lakeclip does not support: {kind}",
                found=f"{', '.join(keys[:3])}" + (f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""),
                allowed=allowed,
            )


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
