"""OpenAI's released weights. Their names are lakeclip's own, so there is nothing to rename."""

from __future__ import annotations

from pathlib import Path

from lakeclip.checkpoints.foreign import Foreign, read_state_dict, recognise
from lakeclip.errors import CheckpointError

LAYOUT = "openai"


def read_openai(path: str | Path) -> Foreign:
    """Read weights in OpenAI's layout without making the model.

    The sizes are found in the shapes. What those do not tell is as in OpenAI's code: QuickGELU, attention heads 64 wide
    in both towers, images normalised by OpenAI's mean and deviation. So this is also how to say of weights in this
    layout, whoever saved them, that they compute so.

    Args:
        path: the TorchScript archive that OpenAI releases (its tensors are read and its code is not run), or a state
            dict saved by `torch.save` or as safetensors, in half precision or float32; as it is, or as the "state_dict"
            of a dict.

    Raises:
        CheckpointError: missing, damaged, no weights alone, or not those of a CLIP in this layout.
    """
    path = Path(path)
    weights = read_state_dict(path, LAYOUT)
    if named := next((key for key in weights if key.startswith("text.")), ""):
        raise CheckpointError(
            f"the weights in {path} have open_clip's names, not OpenAI's", found=named, next_step=f"open_clip:{path}"
        )
    return recognise(path, LAYOUT, weights)
