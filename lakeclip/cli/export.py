"""`lakeclip export`: a trained model for OpenAI's code, open_clip, Hugging Face, or as plain safetensors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lakeclip.errors import CheckpointError

#: Layout → what follows the run's name in what it is written to.
_NAMES = {"openai": ".pt", "safetensors": ".safetensors"} | {
    to: f"-{to}" for to in ("open_clip", "huggingface", "onnx", "torch-export")
}
_USE = {
    "openai": "clip.model.build_model(torch.load({out!r}))",
    "open_clip": "open_clip.create_model_and_transforms('local-dir:{out}')",
    "huggingface": "transformers.CLIPModel.from_pretrained({out!r}), CLIPProcessor.from_pretrained({out!r})",
    "safetensors": "safetensors.torch.load_file({out!r})",
    "onnx": "onnxruntime.InferenceSession('{out}/image.onnx'), and text.onnx; their inputs are in clip.json",
    "torch-export": "torch.export.load('{out}/image.pt2').module(), and text.pt2; their inputs are in clip.json",
}


@dataclass(frozen=True)
class ExportFlags:
    """Write a trained model in another layout. What was written is read back, and must give the same features."""

    checkpoint: str
    """A run's folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER."""
    to: Literal["openai", "open_clip", "huggingface", "safetensors", "onnx", "torch-export"]
    """OpenAI's state dict; a folder for open_clip; a folder for transformers, with processor and tokenizer; weights
    alone; a folder with a program for each tower."""
    out: str | None = None
    """The file or folder to write. Default: named after the checkpoint, here."""
    half: bool = False
    """Weights in float16."""


def run(argv: list[str]) -> None:
    """Parse the flags, write, check, and say how it is used."""
    flags = tyro.cli(ExportFlags, args=argv, prog="lakeclip export")
    from lakeclip.checkpoints.exports import export
    from lakeclip.checkpoints.foreign import build
    from lakeclip.checkpoints.layouts import LAYOUTS, load_weights
    from lakeclip.checkpoints.native import build as build_native
    from lakeclip.checkpoints.native import read_checkpoint
    from lakeclip.models.clip import CLIP

    layout, _, file = flags.checkpoint.partition(":")
    model = (
        build(load_weights(flags.checkpoint)) if layout in LAYOUTS else build_native(read_checkpoint(flags.checkpoint))
    )
    if not isinstance(model, CLIP):
        raise CheckpointError(
            f"{flags.checkpoint} holds two towers, for which other libraries have no layout",
            next_step="lakeclip.load(…).model has image_encoder and text_encoder: save them as their libraries do",
        )
    out = Path(flags.out or f"{Path(file or flags.checkpoint).resolve().stem}{_NAMES[flags.to]}")
    done = export(model, flags.to, out, half=flags.half)
    sys.stdout.write(f"wrote {done.path}\n")
    sys.stdout.write(f"largest difference of a feature: {done.difference:.1e}, by {done.compared_with}\n")
    sys.stdout.write(f"use it with: {_USE[flags.to].format(out=str(out))}\n")
