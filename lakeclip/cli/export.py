"""`lakeclip export`: convert a trained model for OpenAI's code, open_clip or Hugging Face, or to plain safetensors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import tyro

_USAGE = {
    "openai": "clip.model.build_model(torch.load({out!r}))",
    "open_clip": "open_clip.create_model_and_transforms('local-dir:{out}')",
    "huggingface": "transformers.AutoModel.from_pretrained({out!r}), AutoProcessor.from_pretrained({out!r})",
    "safetensors": "safetensors.torch.load_file({out!r})",
    "onnx": "onnxruntime.InferenceSession('{out}/image.onnx'), and text.onnx; their inputs are in clip.json",
    "torch-export": "torch.export.load('{out}/image.pt2').module(), and text.pt2; their inputs are in clip.json",
}


@dataclass(frozen=True)
class ExportFlags:
    """Write a trained model in another layout. The result is read back and must give the same features."""

    checkpoint: str
    """A run's folder or a .ckpt file; or openai:FILE, open_clip:FILE, huggingface:FOLDER or huggingface:ORG/NAME."""
    to: Literal["openai", "open_clip", "huggingface", "safetensors", "onnx", "torch-export"]
    """OpenAI's state dict; a folder for open_clip; a folder for transformers, with processor and tokenizer; weights
    only; a folder with a program for each tower."""
    out: str | None = None
    """The file or folder to write. Default: named after the checkpoint, in the current folder."""
    half: bool = False
    """Save the weights in float16."""


def run(argv: list[str]) -> None:
    """Parse the flags, export the model, and print how to load it."""
    flags = tyro.cli(ExportFlags, args=argv, prog="lakeclip export")
    from lakeclip.checkpoints.exports import export

    result = export(flags.checkpoint, flags.to, flags.out, half=flags.half)
    sys.stdout.write(f"wrote {result.path}\n")
    sys.stdout.write(f"largest difference of a feature: {result.difference:.1e}, by {result.compared_with}\n")
    sys.stdout.write(f"use it with: {_USAGE[flags.to].format(out=str(result.path))}\n")
