"""Read and write OpenAI's layout. lakeclip uses the same names, so no key is renamed."""

from __future__ import annotations

from pathlib import Path

import torch

from lakeclip.checkpoints.convert import PretrainedWeights, parse_weights, read_state_dict, unsupported_settings
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP

LAYOUT = "openai"


def read_openai(path: str | Path) -> PretrainedWeights:
    """Read weights in OpenAI's layout without building the model.

    The sizes are inferred from the shapes. All else is as in OpenAI's code: QuickGELU, attention heads 64 wide in both
    towers, images normalised by OpenAI's mean and standard deviation. Naming this layout asserts this, whoever saved
    the weights.

    Args:
        path: the TorchScript archive that OpenAI releases (its tensors are read, its code is not run), or a state dict
            by `torch.save` or safetensors, in half precision or float32. It may be nested as "state_dict" in a dict.

    Raises:
        CheckpointError: missing, damaged, not only weights, or not a CLIP in this layout.
    """
    path = Path(path)
    weights = read_state_dict(path, LAYOUT)
    if text_key := next((key for key in weights if key.startswith("text.")), ""):
        raise CheckpointError(
            f"the weights in {path} have open_clip's names, not OpenAI's", found=text_key, next_step=f"open_clip:{path}"
        )
    return parse_weights(path, LAYOUT, weights)


def write_openai(model: CLIP, file: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a state dict for OpenAI's `build_model`.

    Args:
        dtype: type of the weights; OpenAI releases float16.

    Raises:
        CheckpointError: the model has parts that OpenAI's layout lacks.
    """
    config = model.config
    if model.logit_bias is not None:
        raise CheckpointError(
            "a model with a logit bias (sigmoid objective) cannot be exported to OpenAI's layout, which has none",
            next_step="--to open_clip",
        )
    if different := unsupported_settings(config):
        raise CheckpointError(
            "this model cannot be exported to OpenAI's layout, which has no place for settings other than OpenAI's",
            found=different,
            next_step="--to huggingface or --to safetensors",
        )
    if config.transformer_heads * 64 != config.transformer_width:
        raise CheckpointError(
            "this model cannot be exported to OpenAI's layout, whose text towers have heads 64 wide",
            found=f"{config.transformer_heads} heads in {config.transformer_width}",
            next_step="--to open_clip",
        )
    sizes = ("context_length", "vocab_size")
    entries = {"input_resolution": config.image_resolution, **{name: getattr(config, name) for name in sizes}}
    weights = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    torch.save({**weights, **{name: torch.tensor(value) for name, value in entries.items()}}, file)
