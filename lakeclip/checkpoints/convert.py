"""Convert weights of other projects to lakeclip models; shared by the readers of all layouts.

lakeclip's parameters have OpenAI's names. Reading a layout means renaming its keys, inferring the model's sizes from
the shapes, and checking that no weight is missing or left over.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lakeclip.checkpoints.file import read_weights_file
from lakeclip.checkpoints.match import state_dict_mismatch
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.hub import INDEX_SUFFIX, read_shards
from lakeclip.models.clip import CLIP, size_problems
from lakeclip.models.text_transformer import stretch_position_embedding
from lakeclip.models.vision_transformer import HEAD_WIDTH, resample_position_embedding
from lakeclip.types import Tokenize

#: Entries that are not weights: OpenAI's sizes, and the causal mask, which follows from the context length.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_TEXT_POSITIONS = "positional_embedding"
_VIT_POSITIONS, _RESNET_POSITIONS = "visual.positional_embedding", "visual.attnpool.positional_embedding"
#: Pixels along a side for each cell of a ResNet's feature map.
_RESNET_STRIDE = 32
#: Learned scalars of the loss in models of other projects.
_SCALARS = ("logit_scale", "logit_bias")


class NotNativeError(CheckpointError):
    """A valid model of another library that lakeclip's own networks cannot compute, so its library has to."""


@dataclasses.dataclass(frozen=True)
class PretrainedWeights:
    """Weights of another project that have been read and validated.

    Attributes:
        path: the file.
        layout: layout of the file, such as "openai", "open_clip" or "huggingface".
        model_config: the model's sizes.
        state_dict: the weights under OpenAI's keys, float32 on the CPU. Possibly memory-mapped: copy before changing.
        assumed: assumptions that neither the weights nor a configuration confirm, in a few words each for the user. If
            one is wrong, the features are wrong.
        tokenizer: the model's tokenizer; None for CLIP's own with the model's context length.
    """

    path: Path
    layout: str
    model_config: ModelConfig
    state_dict: dict[str, Tensor]
    assumed: tuple[str, ...] = ()
    tokenizer: Tokenize | None = None

    def with_tokenizer(self, tokenizer: Tokenize, pad_token: int | None = None) -> PretrainedWeights:
        """Return these weights with a tokenizer, and the token id with which it pads."""
        config = self.model_config
        if pad_token is not None:
            config = dataclasses.replace(config, pad_token=pad_token)
        return dataclasses.replace(self, tokenizer=tokenizer, model_config=config)

    @property
    def scalars(self) -> dict[str, float]:
        """Learned scalars of the loss by name."""
        return {name: float(self.state_dict[name]) for name in _SCALARS if name in self.state_dict}


def build_model(
    pretrained: PretrainedWeights, image_size: int | None = None, context_length: int | None = None
) -> CLIP:
    """Build the model of pretrained weights, in evaluation mode on the CPU.

    Args:
        image_size: side of the images in pixels; by default the size of the training images. For another size, the
            image tower's position embeddings are resampled (bicubic, antialiased), as open_clip does.
        context_length: longest caption in tokens; by default the model's. For another one, the text tower's position
            embeddings are stretched (see `stretch_position_embedding`) or cut.

    Raises:
        CheckpointError: the model cannot have that image size or that context.
    """
    config, weights = pretrained.model_config, pretrained.state_dict
    if context_length is not None and context_length != config.context_length:
        if not config.causal or config.text_pool != "eot":
            raise CheckpointError(
                f"the context of {config.context_length} tokens of the model in {pretrained.path} cannot be changed",
                found=f"a text tower that {'reads' if config.causal else 'attends to'} the padding behind a caption, "
                "whose features depend on its length",
                allowed="models as OpenAI's, whose features are those of the end of text",
                next_step="the same command without --context-length",
            )
        positions = stretch_position_embedding(weights[_TEXT_POSITIONS], context_length)
        config = dataclasses.replace(config, context_length=context_length)
        weights = {**weights, _TEXT_POSITIONS: positions}
    if image_size is not None and image_size != config.image_resolution:
        config = dataclasses.replace(config, image_resolution=image_size)
        if problems := size_problems(config):
            raise CheckpointError(
                f"the model in {pretrained.path} cannot take images of {image_size} pixels",
                found="; ".join(problems),
                next_step=f"use its own size, {pretrained.model_config.image_resolution}",
            )
        key = _RESNET_POSITIONS if config.vision_patch_size is None else _VIT_POSITIONS
        side = image_size // (config.vision_patch_size or _RESNET_STRIDE)
        positions = resample_position_embedding(weights[key], side, has_first=config.vision_class_token)
        weights = {**weights, key: positions}
    model = CLIP(config, scalars=pretrained.scalars)
    model.load_state_dict(weights)
    return model.eval()


#: Keys under which training programs nest the weights: Lightning and open_clip; plain PyTorch; DeepSpeed.
_NESTED = ("state_dict", "model_state_dict", "model", "module")
#: Prefixes of all names that wrappers write: DistributedDataParallel, a LightningModule or a Trainer.
_PREFIXES = ("module.", "model.")
#: Name that `torch.compile` inserts where a module was compiled.
_COMPILED = "_orig_mod."


def read_state_dict(path: Path, layout: str) -> dict[str, Tensor]:
    """Read the weights in a file under the names that the file uses, without the names of wrappers.

    Args:
        path: file by `torch.save`, safetensors or a TorchScript archive, or the index of shards in the same folder. The
            weights may be nested as "state_dict", "model_state_dict", "model" or "module".
        layout: layout that the user named, for the errors.

    Raises:
        CheckpointError: missing, damaged, a checkpoint of lakeclip, or no weights.
    """
    _check_file(path, layout)
    files = read_shards(path) if path.name.endswith(INDEX_SUFFIX) else [path]
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _read_tensors(file, layout)
    return _unwrapped(weights)


def _read_tensors(path: Path, layout: str) -> dict[str, Tensor]:
    content = read_weights_file(
        path, allowed="weights by torch.save (PyTorch 1.6 or newer), safetensors, or TorchScript"
    )
    if isinstance(content, dict) and "lakeclip" in content:
        raise CheckpointError(
            f"{path} is a checkpoint of lakeclip, not weights in the layout {layout}",
            next_step=f"use the path without the layout: {path}",
        )
    while isinstance(content, dict) and (inner := next((key for key in _NESTED if _is_nested(content, key)), None)):
        content = content[inner]
    entries = content if isinstance(content, dict) else {}
    weights = {str(key): value for key, value in entries.items() if str(key).split(".")[-1] not in _NOT_WEIGHTS}
    others = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if others or not weights:
        raise CheckpointError(
            f"{path} contains no weights by name",
            found=_listed(others) or ("nothing" if isinstance(content, dict) else type(content).__name__),
            allowed=f"a dict of tensors, or a dict that has one as its {', '.join(map(repr, _NESTED))}",
        )
    return weights


def _is_nested(content: Mapping[Any, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping) and bool(content[key])


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the names that wrappers add, in any combination, such as "module._orig_mod.model."."""
    names = {name: name.replace(_COMPILED, "") for name in weights}
    while prefix := next(
        (prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names.values())), ""
    ):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return {names[name]: value for name, value in weights.items()}


def parse_weights(
    path: Path,
    layout: str,
    weights: Mapping[str, Tensor],
    *,
    config: ModelConfig | None = None,
    heads: int | None = None,
    settings: Mapping[str, Any] | None = None,
    assumed: tuple[str, ...] = (),
    tokenizer: Tokenize | None = None,
) -> PretrainedWeights:
    """Check that the weights are those of a model, none missing or left over; infer its sizes if they are not given.

    Args:
        path, layout: for the errors.
        weights: weights under OpenAI's names, of any floating-point type.
        config: the model that the weights must fit. Default: inferred from the shapes, with OpenAI's settings.
        heads: attention heads of the text tower, to infer the model. Default: heads 64 wide, as in OpenAI's models.
        settings: other fields of the model, to infer the rest. Default: OpenAI's.
        assumed: assumptions to record in the result.
        tokenizer: the model's tokenizer. Default: CLIP's own.

    Raises:
        CheckpointError: the weights are not those of the model, or of a CLIP that lakeclip supports.
    """
    allowed = f"the names, shapes and floating-point types of OpenAI's models, in the layout {layout}"
    if config is None:
        config = _infer_config(path, layout, weights, heads, settings or {})
    else:
        allowed = "the names and shapes that the configuration beside the weights describes"
        if problems := size_problems(config):
            raise _unsupported_sizes(path, "; ".join(problems), "")
    with torch.device("meta"):
        expected = CLIP(config, scalars={name: 0.0 for name in _SCALARS if name in weights}).state_dict()
    # Some of open_clip's files store the temperature as a tensor of shape (1,).
    weights = {key: _scalar(value) if key in _SCALARS else value for key, value in weights.items()}
    wrong_dtypes = [
        f"{key} is {str(value.dtype).removeprefix('torch.')}"
        for key, value in weights.items()
        if key in expected and expected[key].is_floating_point() and value.dtype not in _FLOAT_DTYPES
    ]
    if found := state_dict_mismatch(expected, weights) or _listed(wrong_dtypes):
        raise CheckpointError(
            f"the weights in {path} are not those of a CLIP that lakeclip supports",
            found=found,
            allowed=allowed,
        )
    return PretrainedWeights(
        path, layout, config, {key: weights[key].to(expected[key].dtype) for key in expected}, assumed, tokenizer
    )


def _infer_config(
    path: Path, layout: str, weights: Mapping[str, Tensor], heads: int | None, settings: Mapping[str, Any]
) -> ModelConfig:
    """Infer the model's sizes from the shapes, as OpenAI's and open_clip's code do."""

    def shape(key: str, dims: int) -> tuple[int, ...]:
        if key not in weights:
            raise CheckpointError(
                f"{path} contains no CLIP in the layout {layout}",
                found=f"no {key} among {_listed(list(weights))}",
                allowed="names such as visual.conv1.weight, transformer.resblocks.0.ln_1.weight, text_projection",
            )
        if weights[key].ndim != dims:
            raise _unsupported_sizes(path, f"{key} has the shape {tuple(weights[key].shape)}", f"{dims} dimensions")
        return tuple(weights[key].shape)

    def count(pattern: str) -> int:
        return len({match[1] for key in weights if (match := re.match(pattern, key))})

    def mlp_width(tower: str, width: int) -> int | None:
        inner = weights.get(f"{tower}.resblocks.0.mlp.c_fc.weight")
        return None if inner is None or len(inner) == 4 * width else len(inner)

    layers: int | tuple[int, int, int, int]
    if _VIT_POSITIONS in weights:
        positions, cell = _VIT_POSITIONS, shape("visual.conv1.weight", 4)[3]
        width, patch_size = shape("visual.conv1.weight", 4)[0], cell
        layers = count(r"visual\.transformer\.resblocks\.(\d+)\.")
    else:
        positions, cell = _RESNET_POSITIONS, _RESNET_STRIDE
        width, patch_size = shape("visual.conv3.weight", 4)[0], None
        layer1, layer2, layer3, layer4 = (count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        layers = (layer1, layer2, layer3, layer4)
    first = int(settings.get("vision_class_token", True))
    tokens = shape(positions, 2)[0]
    side = math.isqrt(max(tokens - first, 0))
    if side**2 + first != tokens:
        raise _unsupported_sizes(
            path,
            f"{positions} has {tokens} rows",
            f"{'1 plus ' if first else ''}the number of cells of a square grid, as images are square",
        )
    vocab_size, text_width = shape("token_embedding.weight", 2)
    if heads is None and text_width % HEAD_WIDTH:
        raise _unsupported_sizes(
            path,
            f"a text tower {text_width} wide; its weights do not tell its number of attention heads",
            f"a multiple of {HEAD_WIDTH}, the width of a head in OpenAI's models",
        )
    projection = settings.get("text_projection", "matrix")
    config = ModelConfig(
        embed_dim=text_width
        if projection == "none"
        else shape("text_projection.weight", 2)[0]
        if projection == "linear"
        else shape("text_projection", 2)[1],
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=patch_size,
        context_length=shape("positional_embedding", 2)[0],
        vocab_size=vocab_size,
        transformer_width=text_width,
        transformer_heads=heads or text_width // HEAD_WIDTH,
        transformer_layers=count(r"transformer\.resblocks\.(\d+)\."),
        **{
            "image_resolution": side * cell,
            "vision_mlp_width": mlp_width("visual.transformer", width) if patch_size else None,
            "transformer_mlp_width": mlp_width("transformer", text_width),
            **settings,
        },
    )
    if problems := size_problems(config):
        raise _unsupported_sizes(path, "; ".join(problems), "")
    return config


def unsupported_settings(config: ModelConfig) -> str:
    """List the settings that differ from OpenAI's, as "name value", for a layout without a place for them."""
    settings = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    return ", ".join(
        f"{name} {getattr(config, name)}"
        for name, default in settings.items()
        if default is not dataclasses.MISSING and getattr(config, name) != default
    )


def _unsupported_sizes(path: Path, found: str, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"{path} contains a model of sizes that lakeclip does not support", found=found, allowed=allowed
    )


def _scalar(value: Tensor) -> Tensor:
    return value.reshape(()) if value.numel() == 1 else value


def _check_file(path: Path, layout: str) -> None:
    if path.is_file():
        return
    if not path.is_dir():
        raise CheckpointError(
            f"there are no weights at {path}",
            found="" if path.parent.is_dir() else f"the folder {path.parent} does not exist either",
            allowed=f"{layout}:FILE, a file of weights",
        )
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    likely = [file for file in files if file.suffix in (".safetensors", ".pt", ".pth", ".bin")]
    raise CheckpointError(
        f"{path} is a folder, but weights are a single file",
        found=_listed([file.name for file in files]) or "a folder without files",
        next_step=f"{layout}:{likely[0]}" if likely else "",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
