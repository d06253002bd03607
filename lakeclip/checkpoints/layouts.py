"""Models by name: a run or a checkpoint of ours, or, after the layout and a colon, a file of another maker."""

from __future__ import annotations

import logging
from pathlib import Path

from lakeclip.checkpoints import huggingface, open_clip, openai
from lakeclip.checkpoints.foreign import Foreign, build
from lakeclip.checkpoints.native import LoadedModel, load_checkpoint
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import CheckpointError
from lakeclip.text.tokenizer import Tokenizer

_READERS = {
    openai.LAYOUT: openai.read_openai,
    open_clip.LAYOUT: open_clip.read_open_clip,
    huggingface.LAYOUT: huggingface.read_huggingface,
}

_log = logging.getLogger(__name__)

#: Whose layouts can be read.
LAYOUTS = tuple(_READERS)


def load_weights(name: str) -> Foreign:
    """Read the weights that a name means, without making the model (`foreign.build` does).

    What is assumed of them, as their file does not tell it, is logged as a warning.

    Args:
        name: openai:FILE, open_clip:FILE or huggingface:FOLDER.

    Raises:
        CheckpointError: there is no such layout, or the file is wrong.
    """
    layout, _, file = name.partition(":")
    if layout not in _READERS or not file:
        there = Path(name).expanduser().is_file()
        raise CheckpointError(
            f"{name!r} does not name weights of another maker",
            allowed="openai:FILE, open_clip:FILE or huggingface:FOLDER",
            next_step=f"{openai.LAYOUT}:{name}, if that file is in OpenAI's layout" if there else "",
        )
    # No shell expands what stands behind a colon.
    weights = _READERS[layout](Path(file).expanduser())
    if weights.assumed:
        _log.warning("assumed of %s, as its file does not tell: %s", name, "; ".join(weights.assumed))
    return weights


def load(name: str | Path) -> LoadedModel:
    """Load a trained model, ready to encode on the CPU.

    Args:
        name: a run folder (its best checkpoint, or else its last) or a .ckpt file; or openai:FILE, open_clip:FILE or
            huggingface:FOLDER.

    Returns:
        The model in evaluation mode; `tokenize`, texts → what the model takes; and `transform`, an image (encoded
        bytes, a path or a PIL image) → (3, size, size) uint8.

    Raises:
        CheckpointError: missing, damaged, of another kind, or trained with another tokenizer.
    """
    if str(name).partition(":")[0] not in LAYOUTS:
        return load_checkpoint(name)
    model = build(load_weights(str(name)))
    return LoadedModel(model, Tokenizer(model.config.context_length), EvalTransform(model.config.image_resolution))
