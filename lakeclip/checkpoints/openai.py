"""OpenAI's released weights. Their names are lakeclip's own, so there is nothing to rename."""

from __future__ import annotations

from pathlib import Path

import torch

from lakeclip.checkpoints.foreign import Foreign, read_state_dict, recognise
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP

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


def write_openai(model: CLIP, file: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a state dict that OpenAI's `build_model` makes the model from.

    Args:
        dtype: of the weights; OpenAI releases float16.

    Raises:
        CheckpointError: the model has what OpenAI's have not.
    """
    config = model.config
    if model.logit_bias is not None:
        raise CheckpointError(
            "a model of the sigmoid objective cannot be exported to OpenAI's layout, which has no bias",
            next_step="--to open_clip",
        )
    if config.transformer_heads * 64 != config.transformer_width:
        raise CheckpointError(
            "this model cannot be exported to OpenAI's layout, whose text towers have heads 64 wide",
            found=f"{config.transformer_heads} heads in {config.transformer_width}",
            next_step="--to open_clip",
        )
    sizes = ("context_length", "vocab_size")
    beside = {"input_resolution": config.image_resolution, **{name: getattr(config, name) for name in sizes}}
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    torch.save({**weights, **{name: torch.tensor(value) for name, value in beside.items()}}, file)
