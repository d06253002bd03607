"""Pretrained models by name, as starting points of fine-tuning: a CLIP, or single towers from any library."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lakeclip.checkpoints.convert import PretrainedWeights, build_model
from lakeclip.checkpoints.layouts import LAYOUTS, load_weights
from lakeclip.checkpoints.native import Checkpoint, read_checkpoint, restore_tokenizer
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import ModelError
from lakeclip.models.clip import CLIP
from lakeclip.models.pretrained import (
    ImageTower,
    TextTower,
    clip_image_tower,
    clip_text_tower,
    load_image_tower,
    load_text_tower,
)
from lakeclip.models.zoo import create_model
from lakeclip.text.huggingface import FixedLengthTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Tokenize

_CLIP_NAMES = "openai:FILE, open_clip:FILE, huggingface:FOLDER, or lakeclip:CHECKPOINT (a run's folder or a .ckpt file)"


class PretrainedCLIP(NamedTuple):
    """A CLIP with pretrained weights, its model name and its tokenizer."""

    model: CLIP
    name: str
    tokenize: Tokenize


def load_clip(name: str, image_size: int | None = None, context_length: int | None = None) -> PretrainedCLIP:
    """Load a CLIP from a file of weights.

    Args:
        name: openai:FILE, open_clip:FILE, huggingface:FOLDER or lakeclip:CHECKPOINT.
        image_size: side of the images in pixels; by default the model's own. For another size, position embeddings are
            resampled.
        context_length: longest caption in tokens; by default the model's own. For a longer one, position embeddings are
            stretched.

    Raises:
        ModelError: the name has no known layout.
        CheckpointError: the file is missing, damaged, or holds another kind of model.
    """
    layout, _, file = name.partition(":")
    if layout in LAYOUTS and file:
        weights = load_weights(name)
        tokenize = weights.tokenizer or Tokenizer(weights.model_config.context_length)
        model = build_model(weights, image_size, context_length)
        return PretrainedCLIP(model, f"{layout}:{Path(file).stem}", _resized(tokenize, context_length))
    if layout == "lakeclip" and file:
        checkpoint = read_checkpoint(file)
        if not isinstance(checkpoint.model_config, ModelConfig):
            raise ModelError(
                f"{file} contains two towers, not a CLIP",
                next_step="lakeclip finetune --resume RUN, to continue the run that trained them",
            )
        weights = PretrainedWeights(checkpoint.path, "lakeclip", checkpoint.model_config, checkpoint.state_dict)
        name = str(checkpoint.lineage["model"]["name"])
        model = build_model(weights, image_size, context_length)
        return PretrainedCLIP(model, name, _resized(_recorded_tokenizer(checkpoint), context_length))
    raise ModelError(f"unknown CLIP {name!r} to start from", allowed=_CLIP_NAMES)


def _recorded_tokenizer(checkpoint: Checkpoint) -> Tokenize:
    """Return the tokenizer that a checkpoint records; CLIP's own if it was trained on token ids of a user's."""
    lineage = checkpoint.lineage
    if lineage["tokenizer"]["kind"] == "own":
        return Tokenizer(int(lineage["model"]["config"]["context_length"]))
    return restore_tokenizer(checkpoint.path, lineage)


def _resized(tokenize: Tokenize, context_length: int | None) -> Tokenize:
    """Return a tokenizer of the same tokens for captions of another length."""
    if context_length is None:
        return tokenize
    if isinstance(tokenize, FixedLengthTokenizer):
        return FixedLengthTokenizer(tokenize.tokenizer, context_length, tokenize.cleaning)
    assert isinstance(tokenize, Tokenizer), "a CLIP has one of the two"
    return Tokenizer(context_length)


def load_image_tower_by_name(name: str) -> ImageTower:
    """Load torchvision:NAME, timm:NAME, hf:NAME, openai:FILE, open_clip:FILE, lakeclip:CHECKPOINT or lakeclip:MODEL.

    Raises:
        ModelError: the tower is unknown, or it cannot be downloaded or read.
        CheckpointError: as for `load_clip`.
    """
    layout, _, rest = name.partition(":")
    if layout == "lakeclip" and rest and not Path(rest).exists():
        return clip_image_tower(create_model(rest), rest)
    if layout in (*LAYOUTS, "lakeclip"):
        start = load_clip(name)
        return clip_image_tower(start.model, start.name)
    return load_image_tower(name)


def load_text_tower_by_name(name: str) -> TextTower:
    """Load a text tower: hf:NAME or FOLDER, openai:FILE, open_clip:FILE or lakeclip:CHECKPOINT.

    Raises:
        ModelError: the tower is unknown, or it cannot be downloaded or read.
        CheckpointError: as for `load_clip`.
    """
    if name.partition(":")[0] in (*LAYOUTS, "lakeclip"):
        start = load_clip(name)
        if not isinstance(start.tokenize, Tokenizer):
            raise ModelError(
                f"the text tower of {name} cannot be used without its image tower",
                found="a tokenizer of its own",
                allowed="text towers with CLIP's tokenizer, or of Hugging Face: hf:NAME",
                next_step=f"lakeclip finetune --from {name}",
            )
        return clip_text_tower(start.model, start.name)
    return load_text_tower(name)
