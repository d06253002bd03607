"""Weights of other makers by name: the layout, a colon, and the file."""

from __future__ import annotations

from pathlib import Path

from lakeclip.checkpoints import huggingface, open_clip, openai
from lakeclip.checkpoints.foreign import Foreign
from lakeclip.errors import CheckpointError

_READERS = {
    openai.LAYOUT: openai.read_openai,
    open_clip.LAYOUT: open_clip.read_open_clip,
    huggingface.LAYOUT: huggingface.read_huggingface,
}

#: Whose layouts can be read.
LAYOUTS = tuple(_READERS)


def load_weights(name: str) -> Foreign:
    """Read the weights that a name means, without making the model (`foreign.build` does).

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
            allowed=" or ".join(f"{known}:FILE" for known in _READERS),
            next_step=f"{openai.LAYOUT}:{name}, if that file is in OpenAI's layout" if there else "",
        )
    # No shell expands what stands behind a colon.
    return _READERS[layout](Path(file).expanduser())
