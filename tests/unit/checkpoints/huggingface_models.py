"""Small models of transformers with random weights, written by its `save_pretrained`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from lakeclip.checkpoints.convert import build_model
from lakeclip.checkpoints.huggingface import read_huggingface
from lakeclip.checkpoints.parity import random_inputs
from lakeclip.models.clip import CLIP

#: Sizes of both towers that differ from each other and from the defaults.
TEXT = {
    "vocab_size": 100,
    "max_position_embeddings": 12,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "eos_token_id": 99,
    "bos_token_id": 98,
    "pad_token_id": 99,
}
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
}
#: Towers of a SigLIP have the same width, since its image tower has no projection.
SIGLIP_TEXT = TEXT | {"hidden_size": 96, "num_attention_heads": 4, "pad_token_id": 1, "eos_token_id": 1}


def write_clip(
    folder: Path, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **save: Any
) -> CLIPModel:
    """Write a `CLIPModel` of changed sizes; `save` are arguments of `save_pretrained`."""
    config = CLIPConfig(text_config=TEXT | (text or {}), vision_config=VISION | (vision or {}), projection_dim=48)
    return _write(CLIPModel(config), folder, **save)


def write_siglip(
    folder: Path, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **save: Any
) -> SiglipModel:
    """Write a `SiglipModel` of changed sizes; `save` are arguments of `save_pretrained`."""
    config = SiglipConfig(text_config=SIGLIP_TEXT | (text or {}), vision_config=VISION | (vision or {}))
    return _write(SiglipModel(config), folder, **save)


def _write(model: Any, folder: Path, **save: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():  # also gains and biases, whose ones and zeros would hide errors
        parameter.data = 0.05 * torch.randn_like(parameter) + (1 if parameter.ndim == 1 and len(parameter) > 1 else 0)
    model.eval().save_pretrained(folder, **save)
    return model


def write_processor(folder: Path, **settings: Any) -> None:
    """Write the image processor's file."""
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_word_tokenizer(folder: Path, *, side: str = "right", extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Write a tokenizer of whole words: <pad> 0, <s> 1, </s> 2, then the words."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "dog", *extra]
    rust = RustTokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, padding_side=side, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def change_config(folder: Path, part: str | None = None, **values: Any) -> None:
    """Change fields of config.json, or of one of its parts."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    (content if part is None else content[part]).update(values)
    file.write_text(json.dumps(content))


def read_model(folder: Path) -> CLIP:
    """Read a folder with lakeclip."""
    return build_model(read_huggingface(folder))


@torch.no_grad()
def difference(ours: CLIP, theirs: Any, *inputs: Tensor) -> float:
    """Return the largest difference of a feature, not scaled to unit length, for random inputs or the given ones."""
    images, ids = inputs or random_inputs(ours.config)
    pairs = (
        (ours.encode_image(images), theirs.get_image_features(pixel_values=images)),
        (ours.encode_text(ids), theirs.get_text_features(input_ids=ids)),
    )
    return max(
        float((mine - (other if isinstance(other, Tensor) else other.pooler_output)).abs().max())
        for mine, other in pairs
    )
