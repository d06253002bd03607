"""Weights that others have trained: what the readers of their layouts share, and how such weights become a model.

lakeclip's parameters have OpenAI's names. So a layout is read by renaming, by finding the sizes in the shapes, and by
making sure that nothing is missing and nothing is left over.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lakeclip.checkpoints.file import read_weights_file
from lakeclip.checkpoints.fit import misfits
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP, size_problems
from lakeclip.models.vision_transformer import HEAD_WIDTH, positions_on_grid

#: What files hold beside the weights: OpenAI's sizes, and the causal mask, which follows from the context's length.
_BESIDE = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_VIT_POSITIONS, _RESNET_POSITIONS = "visual.positional_embedding", "visual.attnpool.positional_embedding"
#: A ResNet's feature map has one cell for so many pixels along a side.
_RESNET_CELL = 32


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Weights of another maker that have been read and found whole.

    Attributes:
        path: the file.
        layout: whose names they had there: "openai" or "open_clip".
        model_config: the model's sizes.
        state_dict: its weights under OpenAI's keys, float32 on the CPU. They may be mapped from the file: copy before
            changing.
        assumed: what the model computes with that neither weights nor a configuration tell, each in a few words for the
            user. Where it does not hold, the features are wrong.
    """

    path: Path
    layout: str
    model_config: ModelConfig
    state_dict: dict[str, Tensor]
    assumed: tuple[str, ...] = ()

    @property
    def is_sigmoid(self) -> bool:
        """Whether it was trained with the sigmoid objective."""
        return "logit_bias" in self.state_dict


def build(foreign: Foreign, image_size: int | None = None) -> CLIP:
    """The model of such weights, in evaluation mode on the CPU.

    Args:
        image_size: side of the images in pixels. Default: what it was trained at. For another, the image tower's
            position embeddings are resampled on its grid (bicubic, antialiased), as open_clip does.

    Raises:
        CheckpointError: the model cannot be made for that size.
    """
    config, weights = foreign.model_config, foreign.state_dict
    if image_size is not None and image_size != config.image_resolution:
        config = dataclasses.replace(config, image_resolution=image_size)
        if problems := size_problems(config):
            raise CheckpointError(
                f"the model in {foreign.path} cannot be made for images of {image_size} pixels",
                found="; ".join(problems),
                next_step=f"its own size is {foreign.model_config.image_resolution}",
            )
        key = _RESNET_POSITIONS if config.vision_patch_size is None else _VIT_POSITIONS
        side = image_size // (config.vision_patch_size or _RESNET_CELL)
        weights = {**weights, key: positions_on_grid(weights[key], side)}
    model = CLIP(config, sigmoid=foreign.is_sigmoid)
    model.load_state_dict(weights)
    return model.eval()


def read_state_dict(path: Path, layout: str) -> dict[str, Tensor]:
    """The tensors in a file by the names they have there, out of whatever they are wrapped in.

    Args:
        path: `torch.save`'s, safetensors or a TorchScript archive. A dict may hold the weights as its "state_dict", and
            DistributedDataParallel may have put "module." before every name.
        layout: the name that the user gave it, for the errors.

    Raises:
        CheckpointError: missing, damaged, lakeclip's own, or no weights.
    """
    _check_there(path, layout)
    content = read_weights_file(
        path, allowed="weights by torch.save (PyTorch 1.6 or newer), safetensors, or TorchScript"
    )
    if isinstance(content, dict) and "lakeclip" in content:
        raise CheckpointError(
            f"{path} is a checkpoint of lakeclip's own, and none in the layout {layout}",
            next_step=f"name it without the layout: {path}",
        )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    entries = content if isinstance(content, dict) else {}
    weights = {str(key): value for key, value in entries.items() if str(key).split(".")[-1] not in _BESIDE}
    others = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if others or not weights:
        raise CheckpointError(
            f"{path} holds no weights by name",
            found=_listed(others) or ("nothing" if isinstance(content, dict) else type(content).__name__),
            allowed='a dict of tensors, or one with it as its "state_dict"',
        )
    prefix = "module."
    if all(key.startswith(prefix) for key in weights):
        return {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def recognise(
    path: Path, layout: str, weights: Mapping[str, Tensor], *, heads: int | None = None, assumed: tuple[str, ...] = ()
) -> Foreign:
    """Find the sizes in the shapes, and check that the weights are all of a model's and no more.

    Args:
        path, layout: for the errors.
        weights: under OpenAI's names, of any floating-point type.
        heads: of the text tower. Default: each 64 wide, as in OpenAI's models.
        assumed: what goes into the result.

    Raises:
        CheckpointError: they are not those of a CLIP that lakeclip can make.
    """
    config = _sizes(path, layout, weights, heads)
    with torch.device("meta"):
        wanted = CLIP(config, sigmoid="logit_bias" in weights).state_dict()
    # Some of open_clip's have one temperature in a row.
    weights = {key: _scalar(value) if key in ("logit_scale", "logit_bias") else value for key, value in weights.items()}
    odd = [
        f"{key} is {str(value.dtype).removeprefix('torch.')}"
        for key, value in weights.items()
        if key in wanted and wanted[key].is_floating_point() and value.dtype not in _FLOATS
    ]
    if found := misfits(wanted, weights) or _listed(odd):
        raise CheckpointError(
            f"the weights in {path} are not those of a CLIP that lakeclip can make",
            found=found,
            allowed=f"the names, shapes and floating-point types of OpenAI's models, in the layout {layout}",
        )
    return Foreign(path, layout, config, {key: weights[key].to(wanted[key].dtype) for key in wanted}, assumed)


def _sizes(path: Path, layout: str, weights: Mapping[str, Tensor], heads: int | None) -> ModelConfig:
    """The sizes of the model, as OpenAI's and open_clip's code find them too."""

    def shape(key: str, dims: int) -> tuple[int, ...]:
        if key not in weights:
            raise CheckpointError(
                f"{path} holds no CLIP in the layout {layout}",
                found=f"no {key} among {_listed(list(weights))}",
                allowed="names such as visual.conv1.weight, transformer.resblocks.0.ln_1.weight, text_projection",
            )
        if weights[key].ndim != dims:
            raise _odd(path, f"{key} has the shape {tuple(weights[key].shape)}", f"{dims} dimensions")
        return tuple(weights[key].shape)

    def count(pattern: str) -> int:
        return len({match[1] for key in weights if (match := re.match(pattern, key))})

    layers: int | tuple[int, int, int, int]
    if _VIT_POSITIONS in weights:
        positions, cell = _VIT_POSITIONS, shape("visual.conv1.weight", 4)[3]
        width, patch_size = shape("visual.conv1.weight", 4)[0], cell
        layers = count(r"visual\.transformer\.resblocks\.(\d+)\.")
    else:
        positions, cell = _RESNET_POSITIONS, _RESNET_CELL
        width, patch_size = shape("visual.conv3.weight", 4)[0], None
        one, two, three, four = (count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        layers = (one, two, three, four)
    tokens = shape(positions, 2)[0]
    side = math.isqrt(max(tokens - 1, 0))
    if side**2 + 1 != tokens:
        raise _odd(
            path, f"{positions} has {tokens} rows", "one, and one for each cell of a square grid: images are square"
        )
    vocab_size, text_width = shape("token_embedding.weight", 2)
    if heads is None and text_width % HEAD_WIDTH:
        raise _odd(
            path,
            f"a text tower {text_width} wide; how many attention heads it has, its weights do not tell",
            f"a multiple of {HEAD_WIDTH}, the width of a head in OpenAI's models",
        )
    config = ModelConfig(
        embed_dim=shape("text_projection", 2)[1],
        image_resolution=side * cell,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch_size,
        context_length=shape("positional_embedding", 2)[0],
        vocab_size=vocab_size,
        transformer_width=text_width,
        transformer_heads=heads or text_width // HEAD_WIDTH,
        transformer_layers=count(r"transformer\.resblocks\.(\d+)\."),
    )
    if problems := size_problems(config):
        raise _odd(path, "; ".join(problems), "")
    return config


def _odd(path: Path, found: str, allowed: str) -> CheckpointError:
    return CheckpointError(f"{path} holds a model of sizes that lakeclip cannot make", found=found, allowed=allowed)


def _scalar(value: Tensor) -> Tensor:
    return value.reshape(()) if value.numel() == 1 else value


def _check_there(path: Path, layout: str) -> None:
    if path.is_file():
        return
    if not path.is_dir():
        raise CheckpointError(
            f"there are no weights at {path}",
            found="" if path.parent.is_dir() else f"no folder {path.parent} either",
            allowed=f"{layout}:FILE, a file of weights",
        )
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    likely = [file for file in files if file.suffix in (".safetensors", ".pt", ".pth", ".bin")]
    raise CheckpointError(
        f"{path} is a folder, and weights are one file",
        found=_listed([file.name for file in files]) or "a folder without files",
        next_step=f"{layout}:{likely[0]}" if likely else "",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
