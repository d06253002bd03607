"""Where the weights of a checkpoint came from: its "lakeclip" entry, of plain types only. The fifth idea of the house.

format      1
version     of lakeclip that wrote it
model       name, config (the fields of `ModelConfig`, or of `TowersConfig` for two towers)
image_size  side in pixels
tokenizer   kind, fingerprint, context_length; files of one that is not CLIP's, by name
data        path, version, query, rows; of newer ones total_rows (before the query), train_rows, val_rows; plan, a
            fingerprint of the order; sources, of each lake or folder path, version, query, rows, total_rows, share;
            validation, the same of data for that alone, or None
config      the whole `TrainConfig` or `FinetuneConfig`, nested; it holds no secret
progress    step, epoch, samples_seen, seconds; of newer ones world_size, data_epoch, position (pairs into it),
            total_steps
code        of newer ones: version, sources (sha256), commit, changed
environment of newer ones: libraries, machine and settings (`training/recovery/environment.py`)
parts       of newer ones: of the run (`parts.py`)
start       of newer fine-tunings: sha256 of the weights that it began with
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lakeclip.config.schema import FinetuneConfig, ModelConfig, TrainConfig
from lakeclip.models.pretrained import TowersConfig
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer

FORMAT = 1

_ENTRIES: dict[str, tuple[str, ...]] = {
    "model": ("name", "config"),
    "tokenizer": ("kind", "fingerprint", "context_length"),
    "data": ("path", "version", "query", "rows"),
    "config": (),
    "progress": ("step", "epoch", "samples_seen"),
}


def lineage(
    *,
    model_name: str,
    model_config: ModelConfig | TowersConfig,
    tokenizer: Tokenizer | HuggingFaceTokenizer | None,
    data: Mapping[str, Any],
    config: TrainConfig | FinetuneConfig,
    progress: Mapping[str, Any],
) -> dict[str, Any]:
    """The entry of a checkpoint, but for what its run adds about the code, the environment and its parts.

    Args:
        tokenizer: that of the data, or None where the user's dataloader makes the token ids.
        data, progress, config: as laid out at the head of this module.
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
        "data": dict(data),
        "config": dataclasses.asdict(config),
        "progress": dict(progress),
    }


def missing_entries(entry: Mapping[str, Any]) -> list[str]:
    """What every lineage has, and this one has not."""
    missing = [] if "image_size" in entry else ["image_size"]
    for name, fields in _ENTRIES.items():
        part = entry.get(name)
        if not isinstance(part, dict):
            missing.append(name)
        else:
            missing += [f"{name}.{field}" for field in fields if field not in part]
    return missing
