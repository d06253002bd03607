"""Export both towers as programs that run without lakeclip: ONNX for any runtime, `torch.export` for PyTorch.

The folder has one program per tower, for batches of any size, and a JSON file that describes their inputs. The programs
take normalised floating-point images (not uint8), and token ids with padding after the end of text (not strings).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lakeclip.errors import ConfigError
from lakeclip.models.clip import CLIP, l2_normalize

#: JSON file with the description of the programs' inputs.
DESCRIPTION = "clip.json"
_OPSET = 18


class _Images(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return l2_normalize(self.model.encode_image(images))


class _Texts(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return l2_normalize(self.model.encode_text(ids))


def write_onnx(model: CLIP, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write image.onnx and text.onnx, which compute unit-length features for batches of any size.

    Args:
        folder: created if missing.
        dtype: must be float32.

    Raises:
        ConfigError: a required package is not installed, or half precision was requested.
    """
    _require_float32("onnx", dtype)
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export to ONNX needs packages that are not installed: {', '.join(missing)}",
            next_step="pip install 'lakeclip[onnx]'",
        )
    folder.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1)
    for name, tower, example in _towers(model):
        with _quietly():
            torch.onnx.export(
                tower,
                (example,),
                str(folder / f"{name}.onnx"),
                input_names=["images" if name == "image" else "ids"],
                output_names=["features"],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
    _write_description(model, folder)


def read_onnx(folder: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]:
    """Load both towers in onnxruntime on the CPU; return them with its name and version."""
    import onnxruntime

    def encoder(name: str) -> Callable[[Tensor], Tensor]:
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()

        def encode(values: Tensor) -> Tensor:
            (features,) = session.run(None, {given.name: values.numpy()})
            return torch.from_numpy(features)

        return encode

    return encoder("image"), encoder("text"), f"onnxruntime {onnxruntime.__version__}"


def write_torch_export(model: CLIP, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write image.pt2 and text.pt2 for `torch.export.load`; the arguments are those of `write_onnx`.

    Raises:
        ConfigError: half precision was requested.
    """
    _require_float32("torch-export", dtype)
    folder.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1)
    for name, tower, example in _towers(model):
        with _quietly():
            program = torch.export.export(tower, (example,), dynamic_shapes=({0: batch},))
            torch.export.save(program, folder / f"{name}.pt2")
    _write_description(model, folder)


def read_torch_export(folder: Path) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]:
    """Load both towers in PyTorch; return them with its name and version."""
    image, text = (torch.export.load(folder / f"{name}.pt2").module() for name in ("image", "text"))
    return image, text, f"torch.export of PyTorch {torch.__version__}"


def _towers(model: CLIP) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield the name, tower and example input of each program.

    The batch size is neither 0 nor 1, because the exporter would treat those as constants.
    """
    config = model.config
    size = config.image_resolution
    ids = torch.zeros(2, config.context_length, dtype=torch.int64)
    ids[:, 0], ids[0, 1], ids[1, -1] = config.vocab_size - 2, config.vocab_size - 1, config.vocab_size - 1
    yield "image", _Images(model).eval(), torch.zeros(2, 3, size, size)
    yield "text", _Texts(model).eval(), ids


def _write_description(model: CLIP, folder: Path) -> None:
    config = model.config
    description: dict[str, Any] = {
        "image": {"input": ["batch", 3, config.image_resolution, config.image_resolution], "type": "float32"},
        "pixels": {"scale": 1 / 255, "mean": list(config.image_mean), "std": list(config.image_std)},
        "resize": {"mode": config.resize_mode, "interpolation": config.interpolation},
        "text": {"input": ["batch", config.context_length], "type": "int64", "padding": config.pad_token},
        "features": {"dim": config.embed_dim, "length": 1},
        "logit_scale": float(model.logit_scale.detach().exp()),
    }
    if model.logit_bias is not None:
        description["logit_bias"] = float(model.logit_bias.detach())
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _require_float32(to: str, dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        raise ConfigError(f"half precision was requested, but --to {to} writes float32", next_step="leave out --half")


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporters' logs and warnings."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
