"""A trained model in the layout of others, checked: what was written is read back and must give the same features."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from lakeclip.checkpoints.foreign import build, read_state_dict, recognise
from lakeclip.checkpoints.huggingface import write_huggingface
from lakeclip.checkpoints.layouts import load_weights
from lakeclip.checkpoints.open_clip import WEIGHTS, write_open_clip
from lakeclip.checkpoints.openai import write_openai
from lakeclip.checkpoints.programs import read_onnx, read_programs, write_onnx, write_programs
from lakeclip.errors import CheckpointError, OutputError
from lakeclip.models.clip import CLIP, unit

#: Unit-length features may differ by so much.
LARGEST_DIFFERENCE = 1e-4
_NUM_CHECKED = 4


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the file or the folder.
        difference: the largest of any of the features' numbers, from those of the model with weights as precise.
        compared_with: who computed the other features.
    """

    path: Path
    difference: float
    compared_with: str


#: Encodes images, floating point and normalised, and token ids with what was written.
Encoders = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def export(model: CLIP, to: str, out: Path, *, half: bool = False) -> Exported:
    """Write a model in another layout, and compare the features of what was written with its own.

    Args:
        to: one of `FORMATS`.
        out: the file or the folder; must not be there yet.
        half: weights in float16; they are then compared with the model's own, rounded alike.

    Raises:
        CheckpointError: the layout cannot hold the model, or the features differ by more than 1e-4.
        OutputError: something is there already, or it cannot be written.
    """
    if out.exists():
        raise OutputError(f"{out} is there already", next_step="another --out, or remove it")
    dtype = torch.float16 if half else torch.float32
    reference = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    if half:
        reference = reference.half().float()
    write, read = FORMATS[to]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(reference, out, dtype)
    except OSError as error:
        raise OutputError(f"{out} cannot be written", found=error.strerror or str(error)) from None
    encoders, compared_with = read(out, reference)
    difference = _difference(reference, encoders)
    if not difference <= LARGEST_DIFFERENCE:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        raise CheckpointError(
            f"what was written to {out} does not give the model's features; it was removed, as it must not be used",
            found=f"a difference of {difference:.2g} by {compared_with}",
            allowed=f"at most {LARGEST_DIFFERENCE:g}",
        )
    return Exported(out, difference, compared_with)


@torch.no_grad()
def _difference(model: CLIP, encoders: Encoders) -> float:
    """The largest difference of unit-length features, for random images and texts of every length."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_NUM_CHECKED, 3, config.image_resolution, config.image_resolution, generator=generator)
    ids = torch.randint(1, config.vocab_size - 2, (_NUM_CHECKED, config.context_length), generator=generator)
    ids[:, 0] = config.vocab_size - 2
    for row, end in enumerate(torch.linspace(1, config.context_length - 1, _NUM_CHECKED).long()):
        ids[row, end:] = 0
        ids[row, end] = config.vocab_size - 1
    image, text = encoders
    both = ((unit(model.encode_image(images)), unit(image(images))), (unit(model.encode_text(ids)), unit(text(ids))))
    return max(float((ours - theirs).abs().max()) for ours, theirs in both)


def _write_safetensors(model: CLIP, out: Path, dtype: torch.dtype) -> None:
    weights = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    sizes = {name: str(value) for name, value in dataclasses.asdict(model.config).items()}
    save_file(weights, out, metadata={"format": "pt", **sizes})


def _by_lakeclip(name: str) -> Callable[[Path, CLIP], tuple[Encoders, str]]:
    """Read back by our own reader of a layout."""

    def read(out: Path, model: CLIP) -> tuple[Encoders, str]:
        path = out / WEIGHTS if name == "open_clip" else out
        if name == "safetensors":
            state = read_state_dict(path, name)
            loaded = build(recognise(path, name, state, heads=model.config.transformer_heads))
        else:
            loaded = build(load_weights(f"{name}:{path}"))
        return (loaded.encode_image, loaded.encode_text), "lakeclip, which read it back"

    return read


def _by_transformers(out: Path, model: CLIP) -> tuple[Encoders, str]:
    import transformers

    theirs: Any = transformers.CLIPModel.from_pretrained(out, local_files_only=True)
    theirs.float().eval()

    def image(images: Tensor) -> Tensor:
        features: Tensor = theirs.visual_projection(theirs.vision_model(pixel_values=images).pooler_output)
        return features

    def text(ids: Tensor) -> Tensor:
        features: Tensor = theirs.text_projection(theirs.text_model(input_ids=ids).pooler_output)
        return features

    return (image, text), f"transformers {transformers.__version__}"


def _by_programs(out: Path, model: CLIP) -> tuple[Encoders, str]:
    image, text, name = read_programs(out)
    return (image, text), name


def _by_onnxruntime(out: Path, model: CLIP) -> tuple[Encoders, str]:
    image, text, name = read_onnx(out)
    return (image, text), name


_Writer = Callable[[CLIP, Path, torch.dtype], None]
_Reader = Callable[[Path, CLIP], tuple[Encoders, str]]

#: Layout → how it is written, and who reads it back.
FORMATS: dict[str, tuple[_Writer, _Reader]] = {
    "openai": (lambda model, out, dtype: write_openai(model, out, dtype=dtype), _by_lakeclip("openai")),
    "open_clip": (lambda model, out, dtype: write_open_clip(model, out, dtype=dtype), _by_lakeclip("open_clip")),
    "huggingface": (lambda model, out, dtype: write_huggingface(model, out, dtype=dtype), _by_transformers),
    "safetensors": (_write_safetensors, _by_lakeclip("safetensors")),
    "onnx": (lambda model, out, dtype: write_onnx(model, out, dtype=dtype), _by_onnxruntime),
    "torch-export": (lambda model, out, dtype: write_programs(model, out, dtype=dtype), _by_programs),
}
