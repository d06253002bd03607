"""lakeclip's own checkpoints: what a training run leaves, and how it becomes a model again.

A checkpoint is Lightning's .ckpt: its "state_dict" holds the model's weights as "model.<OpenAI's key>", and its
"lakeclip" entry is the lineage (`lineage.py`). Everything is read with `weights_only`: loading never runs code from a
file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lakeclip.checkpoints.file import read_torch_file
from lakeclip.checkpoints.fit import misfits
from lakeclip.checkpoints.folder import find_checkpoint, newest_first
from lakeclip.checkpoints.lineage import FORMAT, missing_entries
from lakeclip.config.schema import ModelConfig
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import CheckpointError, ModelError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import TowersConfig, remake
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and found whole.

    Attributes:
        path: the file.
        lineage: where the weights came from, as laid out at the head of this module.
        model_config: sizes of the model, or what two towers were made from.
        state_dict: its weights under OpenAI's keys, on the CPU, LoRA's additions added. They may be mapped from
            the file: copy before changing.
    """

    path: Path
    lineage: dict[str, Any]
    model_config: ModelConfig | TowersConfig
    state_dict: dict[str, Tensor]

    @property
    def is_sigmoid(self) -> bool:
        """Whether it was trained with the sigmoid objective."""
        return "logit_bias" in self.state_dict

    def expect(self, model: ModelConfig) -> None:
        """Be of a certain model, because something else depends on that.

        Raises:
            CheckpointError: it is of another.
        """
        _check_same(self.path, str(self.lineage["model"]["name"]), self.model_config, model)


class LoadedModel(NamedTuple):
    """A model ready to encode, with the two functions that make its inputs."""

    model: CLIP | DualEncoder
    tokenize: Tokenizer | HuggingFaceTokenizer
    transform: EvalTransform


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, to go on from; None where there is none yet. A damaged one is passed over.

    Raises:
        CheckpointError: none of those that there are can be read.
    """
    errors: list[CheckpointError] = []
    for path in newest_first(run):
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            errors.append(error)
            continue
        for damaged in errors:
            _log.warning("%s; going on from %s", " ".join(str(damaged).split()), path)
        return checkpoint
    if errors:
        raise errors[0]
    return None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without making the model.

    Args:
        path: a run folder (its best checkpoint, or else its last) or a .ckpt file.

    Raises:
        CheckpointError: missing, damaged, or not lakeclip's.
    """
    path = find_checkpoint(path)
    content = read_torch_file(path, allowed="a .ckpt file of lakeclip")
    entry = content.get("lakeclip") if isinstance(content, dict) else None
    if entry is None and isinstance(content, dict) and "lakeclip" in content:
        raise CheckpointError(
            f"{path} was trained on towers of your own, which lakeclip cannot make",
            next_step="make the towers, and load the file's 'state_dict' into them",
        )
    if not isinstance(entry, dict):
        keys = ", ".join(str(key) for key in list(content)[:8]) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is a torch file, but no checkpoint of lakeclip: it has no 'lakeclip' entry",
            found=keys or "nothing",
            allowed="a file that `lakeclip train` wrote",
        )
    if entry.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is in a format that this lakeclip does not read",
            found=f"format {entry.get('format')}, written by lakeclip {entry.get('version', 'unknown')}",
            allowed=f"format {FORMAT}",
            next_step="pip install --upgrade lakeclip",
        )
    if missing := missing_entries(entry):
        raise CheckpointError(f"the lineage in {path} is incomplete", found="without " + ", ".join(missing))
    config = _model_config(path, entry["model"]["config"])
    return Checkpoint(path, cast("dict[str, Any]", entry), config, _weights(path, content.get("state_dict")))


def load_checkpoint(path: str | Path) -> LoadedModel:
    """Load a trained model, ready to encode on the CPU.

    Args:
        path: a run folder (its best checkpoint, or else its last) or a .ckpt file.

    Returns:
        The model in evaluation mode; `tokenize`, texts → (n, context_length) int64; and `transform`, an image (encoded
        bytes, a path or a PIL image) → (3, size, size) uint8.

    Raises:
        CheckpointError: missing, damaged, of another kind, or trained with another tokenizer.
    """
    checkpoint = read_checkpoint(path)
    words = checkpoint.lineage["tokenizer"]
    if words["kind"] == "clip-bpe" and words["fingerprint"] != Tokenizer.fingerprint:
        raise CheckpointError(
            f"{checkpoint.path} was trained with another tokenizer, so its token ids mean other words",
            found=f"fingerprint {str(words['fingerprint'])[:16]}…",
            allowed=f"fingerprint {Tokenizer.fingerprint[:16]}…",
        )
    if words["kind"] not in ("clip-bpe", "huggingface"):
        raise CheckpointError(
            f"{checkpoint.path} was trained on token ids from a dataloader of your own, so lakeclip cannot make them",
            found=f"tokenizer of kind {words['kind']!r}",
            next_step="lakeclip.checkpoints.native.read_checkpoint(path) for the weights, and your own tokenizer",
        )
    tokenize: Tokenizer | HuggingFaceTokenizer = Tokenizer(words["context_length"])
    if words["kind"] == "huggingface":
        tokenize = HuggingFaceTokenizer.from_files(words["files"], words["context_length"])
    return LoadedModel(build(checkpoint), tokenize, EvalTransform(checkpoint.model_config.image_resolution))


def build(checkpoint: Checkpoint) -> CLIP | DualEncoder:
    """The model of a checkpoint, in evaluation mode on the CPU.

    Raises:
        CheckpointError: its weights do not fit its sizes.
        ModelError: two towers, one of which is of a library that is not installed.
    """
    sizes = checkpoint.model_config
    model: CLIP | DualEncoder
    if isinstance(sizes, TowersConfig):
        model = remake(sizes)
        _check_fit(checkpoint, model)
    else:
        _check_layers(checkpoint, sizes)
        try:
            # The file says how large, so its weights have to fit before any memory is taken.
            with torch.device("meta"):
                _check_fit(checkpoint, CLIP(sizes, sigmoid=checkpoint.is_sigmoid))
        except ModelError as error:
            raise CheckpointError(f"{checkpoint.path} names sizes that no model has", found=error.found) from None
        model = CLIP(sizes, sigmoid=checkpoint.is_sigmoid)
    model.load_state_dict(checkpoint.state_dict)
    return model.eval()


def _check_layers(checkpoint: Checkpoint, sizes: ModelConfig) -> None:
    """Every layer has weights, so a file has at least as many of these as it says it has layers."""
    stages = sizes.vision_layers if isinstance(sizes.vision_layers, tuple) else (sizes.vision_layers,)
    if (layers := sum(stages) + sizes.transformer_layers) > len(checkpoint.state_dict):
        raise CheckpointError(
            f"{checkpoint.path} names sizes that its weights do not have",
            found=f"{layers:,} layers, and {len(checkpoint.state_dict):,} tensors",
        )


def _check_fit(checkpoint: Checkpoint, model: CLIP | DualEncoder) -> None:
    if found := misfits(model.state_dict(), checkpoint.state_dict):
        name = checkpoint.lineage["model"]["name"]
        raise CheckpointError(f"the weights in {checkpoint.path} do not fit its model, {name}", found=found)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A sha256 over names, types, shapes and bytes: the same for the same weights, bit for bit, in any file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _model_config(path: Path, values: Any) -> ModelConfig | TowersConfig:
    kind = TowersConfig if isinstance(values, dict) and "image" in values else ModelConfig
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, dict) or set(values) != names:
        given = set(values) if isinstance(values, dict) else set()
        wrong = [f"no {name}" for name in sorted(names - given)] + [f"unknown {name}" for name in sorted(given - names)]
        raise CheckpointError(f"{path} does not describe its model", found="; ".join(wrong))
    if kind is TowersConfig:
        return TowersConfig(**values)
    layers = values["vision_layers"]
    return ModelConfig(**{**values, "vision_layers": tuple(layers) if isinstance(layers, list) else layers})


def _check_same(path: Path, name: str, config: ModelConfig | TowersConfig, expect: ModelConfig) -> None:
    held, wanted = dataclasses.asdict(config), dataclasses.asdict(expect)
    if set(held) != set(wanted):
        raise CheckpointError(f"{path} holds two towers, {name}", next_step="lakeclip finetune --resume")
    if differing := [field for field in held if held[field] != wanted[field]]:
        raise CheckpointError(
            f"{path} holds another model, {name}",
            found=", ".join(f"{field} {held[field]}" for field in differing),
            allowed=", ".join(f"{field} {wanted[field]}" for field in differing),
        )


def _weights(path: Path, state_dict: Any) -> dict[str, Tensor]:
    prefix = "model."
    weights = {
        key[len(prefix) :]: value
        for key, value in (state_dict.items() if isinstance(state_dict, dict) else ())
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
    if not weights:
        raise CheckpointError(f"{path} holds no model: its state_dict has no key that starts with 'model.'")
    return _with_additions(weights)


def _with_additions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that were trained by low-rank additions (`training/tuning.py`), as one under its own name."""
    whole = {}
    for key, value in weights.items():
        before, is_adapted, after = key.partition("parametrizations.")
        if not is_adapted:
            whole[key] = value
        elif after.endswith(".original"):
            name = after.removesuffix(".original")
            up, down, scale = (weights[f"{before}parametrizations.{name}.0.{part}"] for part in ("up", "down", "scale"))
            whole[before + name] = value + (scale * (up @ down)).view_as(value)
    return whole
