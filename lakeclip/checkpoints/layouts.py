"""Load models by name: a run or checkpoint of lakeclip, or LAYOUT:FILE for weights of another project."""

from __future__ import annotations

import logging
from pathlib import Path

from lakeclip.checkpoints import huggingface, open_clip, openai
from lakeclip.checkpoints.convert import PretrainedWeights, build_model
from lakeclip.checkpoints.native import LoadedModel, load_checkpoint
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Tokenize

_READERS = {
    openai.LAYOUT: openai.read_openai,
    open_clip.LAYOUT: open_clip.read_open_clip,
    huggingface.LAYOUT: huggingface.read_huggingface,
}

_log = logging.getLogger(__name__)

#: Layouts that can be read.
LAYOUTS = tuple(_READERS)


def load_weights(name: str) -> PretrainedWeights:
    """Read the weights of another project by name, without building the model (see `convert.build_model`).

    Assumptions that the file does not confirm are logged as a warning.

    Args:
        name: openai:FILE, open_clip:FILE, huggingface:FOLDER, or huggingface:ORG/NAME for a model of the hub.

    Raises:
        CheckpointError: the layout is unknown, or the file is invalid.
    """
    layout, _, file = name.partition(":")
    if layout not in _READERS or not file:
        is_file = Path(name).expanduser().is_file()
        raise CheckpointError(
            f"{name!r} does not name weights of another project",
            allowed="openai:FILE, open_clip:FILE or huggingface:FOLDER",
            next_step=f"{openai.LAYOUT}:{name} if the file is in OpenAI's layout" if is_file else "",
        )
    # A shell does not expand ~ after a colon.
    weights = _READERS[layout](Path(file).expanduser())
    if weights.assumed:
        _log.warning("assumptions about %s that its file does not confirm: %s", name, "; ".join(weights.assumed))
    return weights


def load(name: str | Path, *, model: CLIP | DualEncoder | None = None, tokenize: Tokenize | None = None) -> LoadedModel:
    """Load a trained model, ready to encode on the CPU.

    Args:
        name: a run folder (its best checkpoint, or else its last) or a .ckpt file; or openai:FILE, open_clip:FILE or
            huggingface:FOLDER.
        model: model to load the weights into, such as the `model` of a `CustomCLIPWrapper`; required for custom towers.
        tokenize: tokenizer, required for a model that was trained on token ids from a custom dataloader.

    Returns:
        The model in evaluation mode; `tokenize`, from texts to the model's input; and `transform`, from an image
        (encoded bytes, a path or a PIL image) to (3, size, size) uint8.

    Raises:
        CheckpointError: missing, damaged, of another kind, or trained with another tokenizer.
    """
    if str(name).partition(":")[0] not in LAYOUTS:
        return load_checkpoint(name, model=model, tokenize=tokenize)
    weights = load_weights(str(name))
    clip = build_model(weights)
    tokenize = tokenize or weights.tokenizer or Tokenizer(clip.config.context_length)
    return LoadedModel(clip, tokenize, EvalTransform.of(clip.config))
