"""Convert the names of weights between open_clip's two layouts, timm's image tower for SigLIP, and OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

#: Names text.X of `CustomTextCLIP` that are X in OpenAI's layout.
_TEXT = re.compile(
    r"text\.(token_embedding\.|positional_embedding$|transformer\.resblocks\.|ln_final\.|text_projection(\.|$))"
)
_TEXT_NAMES = ("token_embedding.", "positional_embedding", "transformer.resblocks.", "ln_final.", "text_projection")

_TRUNK, _BLOCK = "visual.trunk.", "visual.transformer.resblocks."
#: timm's names behind `visual.trunk.` → OpenAI's.
_TIMM = {
    "patch_embed.proj.": "visual.conv1.",
    "pos_embed": "visual.positional_embedding",
    "norm.": "visual.ln_post.",
    "attn_pool.latent": "visual.attn_pool.probe",
    "attn_pool.proj.": "visual.attn_pool.attn.out_proj.",
    "attn_pool.norm.": "visual.attn_pool.ln.",
    "attn_pool.mlp.fc1.": "visual.attn_pool.mlp.c_fc.",
    "attn_pool.mlp.fc2.": "visual.attn_pool.mlp.c_proj.",
}
#: timm's names within a block → OpenAI's.
_TIMM_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_QUERY, _KEY_VALUE, _POOL_IN = "attn_pool.q.", "attn_pool.kv.", "visual.attn_pool.attn.in_proj_"


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the text tower of `CustomTextCLIP` to OpenAI's names."""
    renamed = {}
    for key, value in weights.items():
        name = key.removeprefix("text.") if _TEXT.match(key) else key
        renamed[key if name in weights else name] = value
    return renamed


def to_custom_text(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the text tower to the names of `CustomTextCLIP`."""
    return {f"text.{name}" if name.startswith(_TEXT_NAMES) else name: value for name, value in weights.items()}


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's image tower; unknown names stay, so that the reader refuses."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        inner = name.removeprefix(_TRUNK)
        if inner == name:
            renamed[name] = value
        elif inner == "pos_embed":
            renamed[_TIMM[inner]] = value[0] if value.ndim == 3 else value
        elif block := re.match(r"blocks\.(\d+)\.", inner):
            renamed[f"{_BLOCK}{block[1]}.{_renamed(inner[block.end() :], _TIMM_BLOCK)}"] = value
        elif inner.startswith(_QUERY) and (other := f"{_TRUNK}{_KEY_VALUE}{inner[len(_QUERY) :]}") in weights:
            renamed[_POOL_IN + inner[len(_QUERY) :]] = torch.cat([value, weights[other]])
        elif not inner.startswith(_KEY_VALUE):
            renamed[_renamed(inner, _TIMM)] = value
    return renamed


def to_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the image tower to timm's names."""
    names = {ours: theirs for theirs, ours in _TIMM.items()}
    block_names = {ours: theirs for theirs, ours in _TIMM_BLOCK.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(_BLOCK):
            number, _, inner = name[len(_BLOCK) :].partition(".")
            renamed[f"{_TRUNK}blocks.{number}.{_renamed(inner, block_names)}"] = value
        elif name.startswith(_POOL_IN):
            kind, width = name[len(_POOL_IN) :], value.shape[0] // 3
            renamed[f"{_TRUNK}{_QUERY}{kind}"] = value[:width]
            renamed[f"{_TRUNK}{_KEY_VALUE}{kind}"] = value[width:]
        elif (theirs := _renamed(name, names)) != name:
            renamed[_TRUNK + theirs] = value[None] if theirs == "pos_embed" else value
        else:
            renamed[name] = value
    return renamed


def _renamed(name: str, table: Mapping[str, str]) -> str:
    start = next((start for start in table if name.startswith(start)), None)
    return name if start is None else table[start] + name[len(start) :]
