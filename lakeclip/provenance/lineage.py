"""Build the lineage of a checkpoint: the origin of its weights, stored as its "lakeclip" entry, in plain types only.

Entries marked * are missing from older checkpoints.

format      1
version     version of lakeclip that wrote the checkpoint
model       name, config (the fields of `ModelConfig`, of `TowersConfig` for two towers, or of
            `OwnTowersConfig` for towers that a user made in Python)
image_size  side in pixels
tokenizer   kind, fingerprint, context_length; for a tokenizer other than CLIP's also files, by name
data        path, version, query, rows; total_rows* (before the query), train_rows*, val_rows*; plan*, a fingerprint of
            the order; sources*, with path, version, query, rows, total_rows and share of each lake or folder;
            validation*, the same for a separate validation source, or None
config      the complete `TrainConfig` or `FinetuneConfig`, nested, without secrets
progress    step, epoch, samples_seen, seconds; world_size*, data_epoch*, position* (pairs into that epoch),
            total_steps*, warmup_steps*
code*       version, sources (sha256), commit, changed
environment* libraries, machine and settings (`environment.py`)
parts*      segments of the run (`run_segments.py`)
start*      fine-tuning only: sha256 of the weights that it started from
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lakeclip.config.schema import FinetuneConfig, ModelConfig, TrainConfig
from lakeclip.models.pretrained import OwnTowersConfig, TowersConfig
from lakeclip.text.huggingface import FixedLengthTokenizer, HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer

FORMAT = 1

_ENTRIES: dict[str, tuple[str, ...]] = {
    "model": ("name", "config"),
    "tokenizer": ("kind", "fingerprint", "context_length"),
    "data": ("path", "version", "query", "rows"),
    "config": (),
    "progress": ("step", "epoch", "samples_seen"),
}


def make_lineage(
    *,
    model_name: str,
    model_config: ModelConfig | TowersConfig | OwnTowersConfig,
    tokenizer: Tokenizer | HuggingFaceTokenizer | None,
    data: Mapping[str, Any],
    config: TrainConfig | FinetuneConfig,
    progress: Mapping[str, Any],
) -> dict[str, Any]:
    """Make the entry of a checkpoint, without the code, the environment and the segments, which the run adds.

    Args:
        tokenizer: tokenizer of the data; None if a custom dataloader yields token ids.
        data, progress, config: entries described in the module's docstring.
    """
    tokenizer_entry: dict[str, Any] = {"kind": "own", "fingerprint": "", "context_length": 0}
    if tokenizer is not None:
        is_clip_bpe = isinstance(tokenizer, Tokenizer)
        tokenizer_entry = {
            "kind": "clip-bpe" if is_clip_bpe else "huggingface",
            "fingerprint": tokenizer.fingerprint,
            "context_length": tokenizer.context_length,
        }
    elif isinstance(model_config, ModelConfig):
        tokenizer_entry["context_length"] = model_config.context_length
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer_entry["files"] = tokenizer.files()
        if isinstance(tokenizer, FixedLengthTokenizer):
            tokenizer_entry |= {"fixed_length": True, "cleaning": tokenizer.cleaning}
    return {
        "format": FORMAT,
        "version": version("lakeclip"),
        "model": {"name": model_name, "config": dataclasses.asdict(model_config)},
        "image_size": model_config.image_resolution,
        "tokenizer": tokenizer_entry,
        "data": dict(data),
        "config": dataclasses.asdict(config),
        "progress": dict(progress),
    }


def missing_entries(entry: Mapping[str, Any]) -> list[str]:
    """List the required entries that a lineage lacks."""
    missing = [] if "image_size" in entry else ["image_size"]
    for name, fields in _ENTRIES.items():
        part = entry.get(name)
        if not isinstance(part, dict):
            missing.append(name)
        else:
            missing += [f"{name}.{field}" for field in fields if field not in part]
    return missing
