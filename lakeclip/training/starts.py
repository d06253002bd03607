"""What a fine-tuning starts from, by name: a whole CLIP, or one tower of it or of another library."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lakeclip.checkpoints.foreign import Foreign, build
from lakeclip.checkpoints.layouts import LAYOUTS, load_weights
from lakeclip.checkpoints.native import read_checkpoint
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import ModelError
from lakeclip.models.clip import CLIP
from lakeclip.models.pretrained import (
    ImageTower,
    TextTower,
    image_tower_of,
    load_image_tower,
    load_text_tower,
    text_tower_of,
)
from lakeclip.models.zoo import create_model

_WHOLE = "openai:FILE, open_clip:FILE, huggingface:FOLDER, or lakeclip:CHECKPOINT (a run's folder or a .ckpt file)"


class Start(NamedTuple):
    """A whole CLIP, ready to be trained on, and what to call it."""

    model: CLIP
    name: str


def load_clip(name: str, image_size: int | None = None) -> Start:
    """A CLIP from a file of weights.

    Args:
        name: openai:FILE, open_clip:FILE or lakeclip:CHECKPOINT.
        image_size: side of the images in pixels; its own by default. For another, position embeddings are resampled.

    Raises:
        ModelError: the name is of no known layout.
        CheckpointError: the file is missing, damaged, or holds another kind of model.
    """
    layout, _, file = name.partition(":")
    if layout in LAYOUTS and file:
        return Start(build(load_weights(name), image_size), f"{layout}:{Path(file).stem}")
    if layout == "lakeclip" and file:
        checkpoint = read_checkpoint(file)
        if not isinstance(checkpoint.model_config, ModelConfig):
            raise ModelError(
                f"{file} holds two towers, not a CLIP",
                next_step="lakeclip finetune --resume RUN goes on with the run that trained them",
            )
        as_foreign = Foreign(checkpoint.path, "lakeclip", checkpoint.model_config, checkpoint.state_dict)
        return Start(build(as_foreign, image_size), str(checkpoint.lineage["model"]["name"]))
    raise ModelError(f"there is no CLIP {name!r} to start from", allowed=_WHOLE)


def find_image_tower(name: str) -> ImageTower:
    """An image tower: torchvision:NAME, timm:NAME, hf:NAME, openai:FILE, open_clip:FILE, lakeclip:CHECKPOINT or NAME.

    Raises:
        ModelError: there is no such tower, or it cannot be had.
        CheckpointError: as `load_clip`.
    """
    layout, _, rest = name.partition(":")
    if layout == "lakeclip" and rest and not Path(rest).exists():
        return image_tower_of(create_model(rest), rest)
    if layout in (*LAYOUTS, "lakeclip"):
        start = load_clip(name)
        return image_tower_of(start.model, start.name)
    return load_image_tower(name)


def find_text_tower(name: str) -> TextTower:
    """A text tower: hf:NAME or FOLDER, openai:FILE, open_clip:FILE or lakeclip:CHECKPOINT.

    Raises:
        ModelError: there is no such tower, or it cannot be had.
        CheckpointError: as `load_clip`.
    """
    if name.partition(":")[0] in (*LAYOUTS, "lakeclip"):
        start = load_clip(name)
        return text_tower_of(start.model, start.name)
    return load_text_tower(name)
