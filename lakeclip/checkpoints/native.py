"""lakeclip's own checkpoints: what a training run leaves, and how it becomes a model again.

A checkpoint is Lightning's .ckpt: its "state_dict" holds the model's weights as "model.<OpenAI's key>", and its
"lakeclip" entry is the lineage, a plain dict that says where the weights came from (the fifth idea of the house):

    format      1
    version     of lakeclip that wrote it
    model       name, config (the fields of `ModelConfig`, or of `TowersConfig` for two towers)
    image_size  side in pixels
    tokenizer   kind, fingerprint, context_length; files of one that is not CLIP's, by name
    data        path, version, query, rows; of newer ones total_rows (before the query), train_rows, val_rows; plan, a
                fingerprint of the order; sources, of each lake or folder path, version, query, rows, total_rows, share;
                validation, the same of data for that alone, or None
    config      the whole `TrainConfig` or `FinetuneConfig`, nested
    progress    step, epoch, samples_seen, seconds; of newer ones world_size, data_epoch, position (pairs into it),
                total_steps
    code        of newer ones: version, sources (sha256), commit, changed
    environment of newer ones: libraries, machine and settings (`training/environment.py`)
    parts       of newer ones: of the run (`parts.py`)
    start       of newer fine-tunings: sha256 of the weights that it began with

Everything is read with `weights_only`: loading never runs code from a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lakeclip.checkpoints.file import read_torch_file
from lakeclip.checkpoints.fit import misfits
from lakeclip.config.schema import FinetuneConfig, ModelConfig, TrainConfig
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import CheckpointError, ModelError
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import TowersConfig, remake
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

FORMAT = 1
BEST, LAST = Path("checkpoints/best.ckpt"), Path("checkpoints/last.ckpt")
#: Earlier ones that are kept beside the last (`--keep-last`), in its folder.
STEPS = "step-*.ckpt"
#: Of fine-tuning with a test of what is kept: the best weights between its start and its end.
MIXED = Path("checkpoints/mixed.ckpt")

_ENTRIES: dict[str, tuple[str, ...]] = {
    "model": ("name", "config"),
    "tokenizer": ("kind", "fingerprint", "context_length"),
    "data": ("path", "version", "query", "rows"),
    "config": (),
    "progress": ("step", "epoch", "samples_seen"),
}


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


def lineage(
    *,
    model_name: str,
    model_config: ModelConfig | TowersConfig,
    tokenizer: Tokenizer | HuggingFaceTokenizer | None,
    data_path: str,
    data_version: str,
    query: str | None,
    num_rows: int,
    account: Mapping[str, Any] | None = None,
    config: TrainConfig | FinetuneConfig,
    step: int,
    epoch: int,
    samples_seen: int,
    seconds: float = 0.0,
    world_size: int = 1,
    place: Mapping[str, int] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The "lakeclip" entry of a checkpoint, of plain types only.

    Args:
        tokenizer: that of the data, or None where the user's dataloader makes the token ids.
        data_path, data_version: of the lake or folder; "" where the user brings a dataloader.
        num_rows: how many the query kept.
        account: the further entries of "data", as far as they are known.
        config: what the run was started with; holds no secret.
        step, epoch, samples_seen: optimiser steps, passes begun, and pairs over all ranks so far.
        seconds: wall-clock time of the training so far; 0 where nobody kept it.
        world_size: processes that train together.
        place: the further entries of "progress".
        origin: `code`, `environment`, `parts`, `start`.
    """
    words: dict[str, Any] = {"kind": "own", "fingerprint": "", "context_length": 0}
    if tokenizer is not None:
        is_clips = isinstance(tokenizer, Tokenizer)
        words = {
            "kind": "clip-bpe" if is_clips else "huggingface",
            "fingerprint": tokenizer.fingerprint,
            "context_length": tokenizer.context_length,
        }
    elif isinstance(model_config, ModelConfig):
        words["context_length"] = model_config.context_length
    if isinstance(tokenizer, HuggingFaceTokenizer):
        words["files"] = tokenizer.files()
    return {
        "format": FORMAT,
        "version": version("lakeclip"),
        "model": {"name": model_name, "config": dataclasses.asdict(model_config)},
        "image_size": model_config.image_resolution,
        "tokenizer": words,
        "data": {"path": data_path, "version": data_version, "query": query, "rows": num_rows, **(account or {})},
        "config": dataclasses.asdict(config),
        "progress": {
            "step": step,
            "epoch": epoch,
            "samples_seen": samples_seen,
            "seconds": seconds,
            "world_size": world_size,
            **(place or {}),
        },
        **(origin or {}),
    }


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that a path means: the file itself, or the best of a run folder, or else its last.

    Raises:
        CheckpointError: nothing is there, or the folder is no run.
    """
    path = Path(path)
    if path.is_dir():
        for name in (BEST, LAST):
            if (path / name).is_file():
                return path / name
        entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        listed = ", ".join(entries[:8]) + (", …" if len(entries) > 8 else "")
        raise CheckpointError(
            f"the folder {path} is not a run with a checkpoint",
            found=listed or "an empty folder",
            allowed=f"a run folder with {BEST} or {LAST}, or a .ckpt file",
            next_step=_one_of_the_runs(path),
        )
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}",
            found="" if path.parent.is_dir() else f"no folder {path.parent} either",
            allowed="a run folder, or a .ckpt file in its checkpoints/",
            next_step=_one_of_the_runs(path.parent),
        )
    return path


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, to go on from; None where there is none yet. A damaged one is passed over.

    Raises:
        CheckpointError: none of those that there are can be read.
    """
    paths = [run / LAST, *sorted((run / LAST).parent.glob(STEPS), reverse=True), run / BEST]
    errors: list[CheckpointError] = []
    whole: list[Checkpoint] = []
    for path in paths:
        # From the newest on: the first that is whole.
        if path.is_file() and not whole:
            try:
                whole.append(read_checkpoint(path))
            except CheckpointError as error:
                errors.append(error)
    if errors and not whole:
        raise errors[0]
    for damaged in errors:
        _log.warning("%s; going on from %s", " ".join(str(damaged).split()), whole[0].path)
    return whole[0] if whole else None


def _one_of_the_runs(folder: Path) -> str:
    """A run within a folder, or in `runs` there, to offer instead."""
    runs = [
        entry
        for parent in (folder, folder / "runs")
        if parent.is_dir()
        for entry in parent.iterdir()
        if (entry / BEST).is_file() or (entry / LAST).is_file()
    ]
    return f"a run that is there, such as {max(runs, key=lambda run: run.stat().st_mtime)}" if runs else ""


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
    if missing := _missing_entries(entry):
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
    else:
        try:
            model = CLIP(sizes, sigmoid=checkpoint.is_sigmoid)
        except ModelError as error:
            raise CheckpointError(f"{checkpoint.path} names sizes that no model has", found=error.found) from None
    if found := misfits(model.state_dict(), checkpoint.state_dict):
        name = checkpoint.lineage["model"]["name"]
        raise CheckpointError(f"the weights in {checkpoint.path} do not fit its model, {name}", found=found)
    model.load_state_dict(checkpoint.state_dict)
    return model.eval()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A sha256 over names, types, shapes and bytes: the same for the same weights, bit for bit, in any file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _missing_entries(entry: Mapping[str, Any]) -> list[str]:
    missing = [] if "image_size" in entry else ["image_size"]
    for name, fields in _ENTRIES.items():
        part = entry.get(name)
        if not isinstance(part, dict):
            missing.append(name)
        else:
            missing += [f"{name}.{field}" for field in fields if field not in part]
    return missing


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
