"""Hugging Face's `CLIPModel`, as `save_pretrained` lays it out: config, weights, image processor, tokenizer.

A block's attention has three projections there and one here; two heads are linear layers there and matrices here. There
are vision transformers only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lakeclip.checkpoints.foreign import Foreign, read_state_dict, recognise
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD
from lakeclip.models.vision_transformer import HEAD_WIDTH
from lakeclip.text.tokenizer import merges, vocabulary

LAYOUT = "huggingface"
WEIGHTS = "model.safetensors"

#: Ours → theirs, of single tensors and of layers with a weight and a bias.
_TABLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
}
#: Theirs are the weights of linear layers, so the other way round.
_TRANSPOSED = ("text_projection", "visual.proj")
_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under OpenAI's names as `CLIPModel` calls them."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tower = next((prefix for prefix in _TOWERS if name.startswith(prefix)), None)
        if tower is None:
            key, kind = _split(name, _TABLE)
            theirs[_TABLE[key] + kind] = tensor.T.contiguous() if key in _TRANSPOSED else tensor
            continue
        layer, _, inner = name.removeprefix(tower).partition(".")
        prefix = f"{_TOWERS[tower]}{layer}."
        if inner.startswith("attn.in_proj_"):
            kind = inner.removeprefix("attn.in_proj_")
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"{prefix}self_attn.{projection}_proj.{kind}"] = part.contiguous()
        else:
            key, kind = _split(inner, _BLOCK)
            theirs[prefix + _BLOCK[key] + kind] = tensor
    return theirs


def from_huggingface(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite. Names that no CLIP of theirs has stay as they are, for the reader to complain of."""
    back = {value: key for key, value in _TABLE.items()}
    block_back = {value: key for key, value in _BLOCK.items()}
    tower_back = {value: key for key, value in _TOWERS.items()}
    weights: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in theirs.items():
        if name.endswith("position_ids"):
            continue
        tower = next((prefix for prefix in tower_back if name.startswith(prefix)), None)
        if tower is None:
            key, kind = _split(name, back)
            ours = back.get(key, key)
            weights[ours + kind] = tensor.T if ours in _TRANSPOSED else tensor
            continue
        layer, _, inner = name.removeprefix(tower).partition(".")
        prefix = f"{tower_back[tower]}{layer}."
        module, _, kind = inner.rpartition(".")
        if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            parts.setdefault(f"{prefix}attn.in_proj_{kind}", {})[module[-6]] = tensor
        else:
            weights[f"{prefix}{block_back.get(module, module)}.{kind}"] = tensor
    for name, of in parts.items():
        if set(of) == set("qkv"):
            weights[name] = torch.cat([of[projection] for projection in "qkv"])
    return weights


def read_huggingface(path: str | Path) -> Foreign:
    """Read a folder as `CLIPModel.save_pretrained` leaves it, without making the model.

    Args:
        path: the folder, or its model.safetensors or pytorch_model.bin.

    Raises:
        CheckpointError: missing, damaged, or not a CLIP that lakeclip computes exactly.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next((path / name for name in (WEIGHTS, "pytorch_model.bin") if (path / name).is_file()), path / WEIGHTS)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read", found=str(error).splitlines()[0]) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} is no configuration", found=type(config).__name__)
    if config.get("model_type") != "clip":
        raise CheckpointError(
            f"{folder} holds no CLIP", found=f"model_type {config.get('model_type')!r}", allowed="clip"
        )
    parts = {part: config.get(part) or {} for part in ("text_config", "vision_config")}
    if odd := [part for part, values in parts.items() if not isinstance(values, dict)]:
        raise CheckpointError(f"{folder / 'config.json'} is no configuration", found=f"{odd[0]} that is no object")
    for part, values in parts.items():
        activation = values.get("hidden_act", "quick_gelu")
        if activation != "quick_gelu":
            raise CheckpointError(
                f"lakeclip would compute other features than transformers with {folder}",
                found=f"hidden_act {activation!r} in {part}",
                allowed="quick_gelu",
            )
    heads = parts["text_config"].get("num_attention_heads", 8)
    if not isinstance(heads, int) or heads < 1:
        raise CheckpointError(f"{folder / 'config.json'} is no configuration", found=f"num_attention_heads {heads!r}")
    return recognise(path, LAYOUT, from_huggingface(read_state_dict(path, LAYOUT)), heads=heads)


def write_huggingface(model: CLIP, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read offline.

    Args:
        folder: is made if it is not there.
        dtype: of the weights.

    Raises:
        CheckpointError: Hugging Face has no such CLIP.
    """
    config = model.config
    if config.vision_patch_size is None or not isinstance(config.vision_layers, int):
        raise CheckpointError(
            "a CLIP with a ResNet cannot be exported to Hugging Face, whose CLIPModel has vision transformers only",
            next_step="--to openai or --to open_clip",
        )
    if model.logit_bias is not None:
        raise CheckpointError(
            "a model of the sigmoid objective cannot be exported to Hugging Face's CLIPModel, which has no bias",
            next_step="--to open_clip",
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(dtype).contiguous() for name, value in to_huggingface(model.state_dict()).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in _files(config, dtype).items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _files(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    assert isinstance(config.vision_layers, int)
    size, start, end = config.image_resolution, config.vocab_size - 2, config.vocab_size - 1
    words = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    words |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tower = {"hidden_act": "quick_gelu", "projection_dim": config.embed_dim, "layer_norm_eps": 1e-5}
    return {
        "config.json": {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": config.embed_dim,
            "logit_scale_init_value": 2.6592,
            "torch_dtype": str(dtype).removeprefix("torch."),
            "text_config": tower
            | {
                "model_type": "clip_text_model",
                "hidden_size": config.transformer_width,
                "intermediate_size": 4 * config.transformer_width,
                "num_attention_heads": config.transformer_heads,
                "num_hidden_layers": config.transformer_layers,
                "max_position_embeddings": config.context_length,
                "vocab_size": config.vocab_size,
                "bos_token_id": start,
                "eos_token_id": end,
                "pad_token_id": end,
            },
            "vision_config": tower
            | {
                "model_type": "clip_vision_model",
                "hidden_size": config.vision_width,
                "intermediate_size": 4 * config.vision_width,
                "num_attention_heads": config.vision_width // HEAD_WIDTH,
                "num_hidden_layers": config.vision_layers,
                "image_size": size,
                "patch_size": config.vision_patch_size,
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "CLIPProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
        },
        "tokenizer_config.json": words
        | {
            "tokenizer_class": "CLIPTokenizer",
            "processor_class": "CLIPProcessor",
            "model_max_length": config.context_length,
            "do_lower_case": True,
            "errors": "replace",
        },
        "special_tokens_map.json": words,
        "vocab.json": _vocabulary(),
        "merges.txt": "#version: 0.2\n" + "\n".join(f"{first} {second}" for first, second in merges()) + "\n",
    }


def _vocabulary() -> dict[str, int]:
    """Pieces by id, the special ones under OpenAI's spelling."""
    pieces = vocabulary()
    return {piece: index for index, piece in enumerate(pieces[:-2])} | {
        "<|startoftext|>": len(pieces) - 2,
        "<|endoftext|>": len(pieces) - 1,
    }


def _split(name: str, table: Mapping[str, str]) -> tuple[str, str]:
    """The part of a name that a table knows, and what follows."""
    if name in table:
        return name, ""
    module, _, kind = name.rpartition(".")
    return (module, f".{kind}") if module in table else (name, "")
