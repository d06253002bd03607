"""Export a model to another layout, read it back and check that it computes the same features."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from lakeclip.checkpoints.convert import build_model, parse_weights, read_state_dict
from lakeclip.checkpoints.export_programs import read_onnx, read_torch_export, write_onnx, write_torch_export
from lakeclip.checkpoints.huggingface import write_huggingface
from lakeclip.checkpoints.huggingface_tokenizer import MissingTokenizer
from lakeclip.checkpoints.layouts import LAYOUTS, load_weights
from lakeclip.checkpoints.native import build_model as build_native_model
from lakeclip.checkpoints.native import read_checkpoint, restore_tokenizer
from lakeclip.checkpoints.open_clip import WEIGHTS, write_open_clip
from lakeclip.checkpoints.openai import write_openai
from lakeclip.checkpoints.parity import MAX_DIFFERENCE, Encoders, largest_difference, transformers_encoders
from lakeclip.errors import CheckpointError, OutputError
from lakeclip.models.clip import CLIP
from lakeclip.types import Tokenize

#: Suffixes of files; folders are named NAME-LAYOUT.
_SUFFIXES = {"openai": ".pt", "safetensors": ".safetensors"}


class ExportResult(NamedTuple):
    """Result of an export.

    Attributes:
        path: the file or folder that was written.
        difference: largest difference of a feature from the model's own, with weights of the same precision.
        compared_with: library that computed the features from the export.
    """

    path: Path
    difference: float
    compared_with: str


def export(
    model: CLIP | str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    half: bool = False,
    tokenize: Tokenize | None = None,
) -> ExportResult:
    """Write a trained model in another layout, read it back, and compare its features with the model's own.

    Args:
        model: a model, or the name of a checkpoint as for `lakeclip.load`.
        to: one of `FORMATS`: openai, open_clip, huggingface, safetensors, onnx, torch-export.
        out: file or folder to write; it must not exist. Default: a name after the checkpoint, in the working directory.
        half: write the weights in float16, and compare with the model rounded to float16.
        tokenize: the model's tokenizer, which a folder for Hugging Face gets. Default: the checkpoint's, or CLIP's own.

    Raises:
        CheckpointError: the checkpoint cannot be read, the layout does not support the model, or the features differ by
            more than 1e-4.
        OutputError: the output exists already or cannot be written.
    """
    if to not in FORMATS:
        raise CheckpointError(f"there is no layout {to!r} to export to", allowed=", ".join(FORMATS))
    if out is None:
        stem = "clip" if isinstance(model, CLIP) else Path(str(model).rpartition(":")[2]).resolve().stem
        out = f"{stem}{_SUFFIXES.get(to, f'-{to}')}"
    out = Path(out)
    if not isinstance(model, CLIP):
        model, recorded = _load_clip(str(model))
        tokenize = tokenize or recorded
    if out.exists():
        raise OutputError(f"{out} already exists", next_step="choose another --out, or remove it")
    dtype = torch.float16 if half else torch.float32
    reference = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    if half:
        reference = reference.half().float()
    write, read = FORMATS[to]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(reference, out, dtype, tokenize)
    except OSError as error:
        raise OutputError(f"{out} cannot be written", found=error.strerror or str(error)) from None
    encoders, compared_with = read(out, reference)
    difference = largest_difference(reference, encoders)
    if not difference <= MAX_DIFFERENCE:
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        raise CheckpointError(
            f"the export to {out} does not reproduce the model's features; it was removed, so that nobody uses it",
            found=f"a difference of {difference:.2g} by {compared_with}",
            allowed=f"at most {MAX_DIFFERENCE:g}",
        )
    return ExportResult(out, difference, compared_with)


def _load_clip(name: str) -> tuple[CLIP, Tokenize | None]:
    """Load a checkpoint's model and tokenizer, None for CLIP's own; raise if the model is not a CLIP."""
    if name.partition(":")[0] in LAYOUTS:
        weights = load_weights(name)
        return build_model(weights), weights.tokenizer
    checkpoint = read_checkpoint(name)
    model = build_native_model(checkpoint)
    if not isinstance(model, CLIP):
        raise CheckpointError(
            f"{name} contains two towers, for which other libraries have no layout",
            next_step="lakeclip.load(…).model has image_encoder and text_encoder: save them with their libraries",
        )
    try:
        return model, restore_tokenizer(checkpoint.path, checkpoint.lineage)
    except CheckpointError as error:
        return model, MissingTokenizer(checkpoint.path.parent, error.found)


def _write_safetensors(model: CLIP, out: Path, dtype: torch.dtype, tokenize: Tokenize | None) -> None:
    weights = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    sizes = {name: str(value) for name, value in dataclasses.asdict(model.config).items()}
    save_file(weights, out, metadata={"format": "pt", **sizes})


def _write_huggingface(model: CLIP, out: Path, dtype: torch.dtype, tokenize: Tokenize | None) -> None:
    write_huggingface(model, out, dtype=dtype, tokenizer=tokenize)


def _write_open_clip(model: CLIP, out: Path, dtype: torch.dtype, tokenize: Tokenize | None) -> None:
    write_open_clip(model, out, dtype=dtype, tokenizer=tokenize)


def _by_lakeclip(name: str) -> Callable[[Path, CLIP], tuple[Encoders, str]]:
    """Return a function that reads an export back with lakeclip's reader."""

    def read(out: Path, model: CLIP) -> tuple[Encoders, str]:
        path = out / WEIGHTS if name == "open_clip" else out
        if name == "safetensors":
            state = read_state_dict(path, name)
            loaded = build_model(parse_weights(path, name, state, config=model.config))
        else:
            loaded = build_model(load_weights(f"{name}:{path}"))
        return (loaded.encode_image, loaded.encode_text), "lakeclip, which read it back"

    return read


def _by_transformers(out: Path, model: CLIP) -> tuple[Encoders, str]:
    return transformers_encoders(out)


def _by_programs(out: Path, model: CLIP) -> tuple[Encoders, str]:
    image, text, name = read_torch_export(out)
    return (image, text), name


def _by_onnxruntime(out: Path, model: CLIP) -> tuple[Encoders, str]:
    image, text, name = read_onnx(out)
    return (image, text), name


_Writer = Callable[[CLIP, Path, torch.dtype, Tokenize | None], None]
_Reader = Callable[[Path, CLIP], tuple[Encoders, str]]

#: Layout → its writer, and the reader that checks it.
FORMATS: dict[str, tuple[_Writer, _Reader]] = {
    "openai": (lambda model, out, dtype, _: write_openai(model, out, dtype=dtype), _by_lakeclip("openai")),
    "open_clip": (_write_open_clip, _by_lakeclip("open_clip")),
    "huggingface": (_write_huggingface, _by_transformers),
    "safetensors": (_write_safetensors, _by_lakeclip("safetensors")),
    "onnx": (lambda model, out, dtype, _: write_onnx(model, out, dtype=dtype), _by_onnxruntime),
    "torch-export": (lambda model, out, dtype, _: write_torch_export(model, out, dtype=dtype), _by_programs),
}
