"""Zero-shot classifiers on disk, so that the same prompts are encoded only once for the same weights.

Eighty prompts for each of ImageNet's thousand classes take a text tower minutes on a CPU. The key of a classifier is a
hash of everything it depends on: weights, class names, prompts, tokenizer and arithmetic. Each classifier is a
safetensors file, written under a temporary name and renamed, so that several processes can write it at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lakeclip.cache import FileCache, open_cache
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.layers import IMAGE_TOWER_PREFIXES
from lakeclip.types import Tokenize

#: Part of every key; increase it when a change of the code gives other features for the same prompts and weights.
_FORMAT = 1
#: Hashing the weights takes as long as encoding 50 prompts with ViT-B/32 on a core (0.3 s), or 150 with the smallest
#: model. From several times as many prompts on, the cache saves time in the second evaluation.
MIN_PROMPTS = 256
#: Size limit; the classifier of ImageNet's thousand classes takes 2 MB.
_MAX_BYTES = 500_000_000
_NAME, _CHECKSUM = "weights", "blake2b"
#: Prefixes of weights that the text features do not depend on.
_IMAGE_SIDE = (*IMAGE_TOWER_PREFIXES, "logit_scale", "logit_bias")


class ClassifierCache(FileCache):
    """A folder of classifiers; the least recently used ones are removed when they exceed the size limit."""

    def __init__(self, folder: Path, max_bytes: int = _MAX_BYTES) -> None:
        super().__init__(folder, max_bytes)

    def key(
        self, model: CLIP | DualEncoder, tokenize: Tokenize, classes: Sequence[str], templates: Sequence[str]
    ) -> str | None:
        """Compute the key of a classifier; None if there are few prompts or the tokenizer has no fingerprint."""
        fingerprint = getattr(tokenize, "fingerprint", None)
        if len(classes) * len(templates) < MIN_PROMPTS or fingerprint is None:
            return None
        inputs = {
            "format": _FORMAT,
            "torch": torch.__version__,
            "arithmetic": _arithmetic(model.logit_scale.device),
            "tokenizer": [fingerprint, getattr(tokenize, "context_length", None)],
            "classes": list(classes),
            "templates": list(templates),
            "text_tower": _settings(model),
        }
        digest = hashlib.blake2b(json.dumps(inputs, sort_keys=True, default=str).encode(), digest_size=16)
        _add_weights(digest, model)
        return digest.hexdigest()

    def load(self, key: str) -> Float[Tensor, "classes embed"] | None:
        """Load a classifier to the CPU; None if it is missing. A damaged file is removed."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                weights: Tensor = file.get_tensor(_NAME)
                is_whole = (file.metadata() or {}).get(_CHECKSUM) == _checksum(weights)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            is_whole = False
        if not is_whole:
            self.remove(path)
            return None
        self.mark_used(path)
        return weights

    def store(self, key: str, weights: Float[Tensor, "classes embed"]) -> None:
        """Store a classifier; errors such as a full disk are ignored, as the cache is optional."""
        plain = weights.detach().cpu().contiguous()
        with contextlib.suppress(OSError):
            self.write(self._path(key), [save({_NAME: plain}, {_CHECKSUM: _checksum(plain)})])

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def default_classifier_cache() -> ClassifierCache | None:
    """Open the cache in the folder of LAKECLIP_CACHE; None if LAKECLIP_CACHE_GB=0 disables caching."""
    files = open_cache("classifiers", _MAX_BYTES)
    return ClassifierCache(files.folder, files.max_bytes) if files is not None else None


def _arithmetic(device: torch.device) -> list[Any]:
    """Describe the arithmetic, on which the last digits of the features depend (with autocast the third)."""
    autocast = None
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        autocast = torch.get_autocast_dtype(device.type)
    return [device.type, torch.get_float32_matmul_precision(), autocast]


def _settings(model: CLIP | DualEncoder) -> dict[str, Any]:
    """Return the settings that weights do not show, such as the number of heads and the pooling."""
    if isinstance(model, CLIP):
        return dataclasses.asdict(model.config)
    config = getattr(model.text_encoder, "config", None)
    values = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    values = {name: value for name, value in values.items() if name not in ("_name_or_path", "transformers_version")}
    clip = getattr(model.text_encoder, "clip", None)
    return {
        "config": dataclasses.asdict(clip.config) if isinstance(clip, CLIP) else values,
        "average": model.average_word_embeddings,
        "pad_token": model.pad_token,
    }


def _add_weights(digest: hashlib.blake2b, model: nn.Module) -> None:
    """Hash names, types, shapes and bytes of all weights outside the image tower."""
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(_IMAGE_SIDE):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))


def _checksum(weights: Tensor) -> str:
    return hashlib.blake2b(_bytes(weights), digest_size=16).hexdigest()


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
