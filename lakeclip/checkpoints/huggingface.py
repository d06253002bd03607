"""Read and write `CLIPModel` and `SiglipModel` of transformers in the layout of `save_pretrained`.

The folder has the configuration, weights, image processor and tokenizer; the modules `huggingface_config`,
`huggingface_processor` and `huggingface_tokenizer` read and write all but the weights. transformers' attention has
three projections per block, lakeclip's has one; CLIP's two heads are linear layers there and matrices here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lakeclip.checkpoints.adapters import ADAPTER_CONFIG, merge_adapter, read_adapter
from lakeclip.checkpoints.convert import PretrainedWeights, parse_weights, read_state_dict
from lakeclip.checkpoints.huggingface_config import (
    CLIP_FAMILY,
    CONFIG,
    SIGLIP_FAMILY,
    Family,
    config_content,
    family_of,
    read_config,
)
from lakeclip.checkpoints.huggingface_processor import PROCESSOR, processor_content, read_processing
from lakeclip.checkpoints.huggingface_tokenizer import read_tokenizer, special_ids, tokenizer_files
from lakeclip.errors import CheckpointError
from lakeclip.hub import WEIGHT_FILES, find_weights, resolve_folder
from lakeclip.models.clip import CLIP
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.types import Tokenize

LAYOUT = "huggingface"
WEIGHTS = WEIGHT_FILES[LAYOUT][0]

#: lakeclip's names → transformers', for single tensors and for layers with a weight and a bias.
_COMMON = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_post": "vision_model.post_layernorm",
}
_TABLES = {
    CLIP_FAMILY.model_type: _COMMON
    | {
        "text_projection": "text_projection.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.proj": "visual_projection.weight",
    },
    SIGLIP_FAMILY.model_type: _COMMON
    | {
        "logit_bias": "logit_bias",
        "text_projection": "text_model.head",
        "visual.attn_pool.probe": "vision_model.head.probe",
        "visual.attn_pool.attn.in_proj_weight": "vision_model.head.attention.in_proj_weight",
        "visual.attn_pool.attn.in_proj_bias": "vision_model.head.attention.in_proj_bias",
        "visual.attn_pool.attn.out_proj": "vision_model.head.attention.out_proj",
        "visual.attn_pool.ln": "vision_model.head.layernorm",
        "visual.attn_pool.mlp.c_fc": "vision_model.head.mlp.fc1",
        "visual.attn_pool.mlp.c_proj": "vision_model.head.mlp.fc2",
    },
}
#: CLIP's matrices that are transposed, because transformers has the weights of linear layers.
_TRANSPOSED = ("text_projection", "visual.proj")
_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
#: Learned scalars of the loss; `SiglipModel` has them as tensors of shape (1,).
_SCALARS = ("logit_scale", "logit_bias")
_TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}


def to_huggingface(weights: Mapping[str, Tensor], family: Family = CLIP_FAMILY) -> dict[str, Tensor]:
    """Convert weights under OpenAI's names to the names of a class of transformers."""
    table = _TABLES[family.model_type]
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tower = next((prefix for prefix in _TOWERS if name.startswith(prefix)), None)
        if tower is None:
            key, kind = _split(name, table)
            if key in _SCALARS and family is SIGLIP_FAMILY:
                tensor = tensor.reshape(1)
            converted[table[key] + kind] = tensor.T.contiguous() if name in _TRANSPOSED else tensor
            continue
        layer, _, inner = name.removeprefix(tower).partition(".")
        prefix = f"{_TOWERS[tower]}{layer}."
        if inner.startswith("attn.in_proj_"):
            kind = inner.removeprefix("attn.in_proj_")
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{prefix}self_attn.{projection}_proj.{kind}"] = part.contiguous()
        else:
            key, kind = _split(inner, _BLOCK)
            converted[prefix + _BLOCK[key] + kind] = tensor
    return converted


def from_huggingface(state_dict: Mapping[str, Tensor], family: Family = CLIP_FAMILY) -> dict[str, Tensor]:
    """Convert weights of a class of transformers to OpenAI's names; unknown names stay, so that the reader refuses."""
    table = {value: key for key, value in _TABLES[family.model_type].items()}
    block = {value: key for key, value in _BLOCK.items()}
    towers = {value: key for key, value in _TOWERS.items()}
    weights: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if name.endswith("position_ids"):
            continue
        tower = next((prefix for prefix in towers if name.startswith(prefix)), None)
        if tower is None:
            key, kind = _split(name, table)
            target = table.get(key, key)
            weights[target + kind] = tensor.T if target + kind in _TRANSPOSED else tensor
            continue
        layer, _, inner = name.removeprefix(tower).partition(".")
        prefix = f"{towers[tower]}{layer}."
        module, _, kind = inner.rpartition(".")
        if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            projections.setdefault(f"{prefix}attn.in_proj_{kind}", {})[module[-6]] = tensor
        else:
            weights[f"{prefix}{block.get(module, module)}.{kind}"] = tensor
    for name, qkv in projections.items():
        if set(qkv) == set("qkv"):
            weights[name] = torch.cat([qkv[projection] for projection in "qkv"])
    return weights


def read_huggingface(path: str | Path) -> PretrainedWeights:
    """Read a folder by `save_pretrained` of `CLIPModel` or `SiglipModel` without building the model.

    Everything that decides the features is read from the folder: the configuration, the image processor and the
    tokenizer. The adapter of a PEFT folder is merged into the model that it was trained on.

    Args:
        path: the folder, a file of weights in it, or a model's name on the Hugging Face hub (org/name).

    Raises:
        CheckpointError: missing, damaged, or with settings that lakeclip does not know.
        NotNativeError: a model or preprocessing that lakeclip's own networks cannot compute.
    """
    path = resolve_folder(path, LAYOUT)
    file = path if path.is_file() else None
    folder = path.parent if file else path
    adapter = read_adapter(folder) if (folder / ADAPTER_CONFIG).is_file() else None
    base = adapter.base if adapter else folder
    description = read_config(base)
    family = description.family
    # Whoever adapted a model may have saved another processor or tokenizer with the adapter.
    files = folder if adapter and (folder / PROCESSOR).is_file() else base
    processing, assumed = read_processing(files, family, description.config.image_resolution)
    tokenizer, assumed_too = read_tokenizer(base, description)
    config = dataclasses.replace(description.config, **processing)
    if isinstance(tokenizer, HuggingFaceTokenizer) and family is SIGLIP_FAMILY:
        config = dataclasses.replace(config, pad_token=int(tokenizer.tokenizer.pad_token_id))
    weights_file = find_weights(base) if adapter else file or find_weights(folder)
    state_dict = read_state_dict(weights_file or base / WEIGHTS, LAYOUT)
    if adapter:
        state_dict = merge_adapter(adapter, state_dict, read_state_dict(adapter.weights, LAYOUT))
    _check_adapted(folder, state_dict)
    weights = from_huggingface(state_dict, family)
    return parse_weights(
        weights_file or base / WEIGHTS,
        LAYOUT,
        weights,
        config=config,
        assumed=(*assumed, *assumed_too),
        tokenizer=tokenizer,
    )


def write_huggingface(
    model: CLIP, folder: Path, *, dtype: torch.dtype = torch.float32, tokenizer: Tokenize | None = None
) -> None:
    """Write a folder that `AutoModel` and `AutoProcessor` of transformers read offline.

    Args:
        folder: created if missing.
        dtype: type of the weights.
        tokenizer: the model's tokenizer. Default: CLIP's own.

    Raises:
        CheckpointError: no class of transformers computes what the model computes.
    """
    config = model.config
    if config.vision_patch_size is None or not isinstance(config.vision_layers, int):
        raise CheckpointError(
            "a CLIP with a ResNet cannot be exported to Hugging Face, whose CLIPModel has vision transformers only",
            next_step="--to openai or --to open_clip",
        )
    family = family_of(config)
    weights = dict(model.state_dict())
    if family is CLIP_FAMILY and model.logit_bias is not None:
        raise CheckpointError(
            "a model with a logit bias (sigmoid objective) cannot be exported to Hugging Face's CLIPModel, which has "
            "none",
            next_step="--to open_clip",
        )
    if family is SIGLIP_FAMILY:
        # `SiglipModel` always has a bias; that of a model trained without one is 0.
        weights.setdefault("logit_bias", torch.zeros(()))
    files: dict[str, object] = {
        CONFIG: config_content(family, config, str(dtype).removeprefix("torch."), special_ids(tokenizer, config)),
        PROCESSOR: processor_content(family, config),
        **tokenizer_files(tokenizer, family, config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    converted = {name: value.to(dtype).contiguous() for name, value in to_huggingface(weights, family).items()}
    save_file(converted, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in files.items():
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _check_adapted(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise if weights contain the parts of an adapter that was saved with them, whose scale is unknown."""
    if names := [name for name in weights if ".lora_" in name or ".base_layer." in name]:
        raise CheckpointError(
            f"the weights in {folder} are those of a model with an adapter (PEFT), and do not tell how to merge it",
            found=", ".join(names[:3]) + (", …" if len(names) > 3 else ""),
            next_step="merge it where it was trained: model.merge_and_unload().save_pretrained(FOLDER)",
        )


def _split(name: str, table: Mapping[str, str]) -> tuple[str, str]:
    """Split a name into the part that is in a table and the rest."""
    if name in table:
        return name, ""
    module, _, kind = name.rpartition(".")
    return (module, f".{kind}") if module in table else (name, "")
