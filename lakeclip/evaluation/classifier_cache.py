"""Zero-shot classifiers on the disk, so that the same prompts are not encoded again for the same weights.

Eighty sentences for each of ImageNet's thousand classes take a text tower minutes on a CPU. What such a classifier
depends on is hashed: change a weight, a name or a sentence, and it is another. Each is a safetensors file, made under
another name and renamed, so that it is there whole or not at all and any number of processes may write it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lakeclip.lake.remote.cache import cache_folder, limit_gb
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Part of every key: to be counted up when the same prompts and weights come to mean other features.
_FORMAT = 1
#: Hashing the weights takes a core as long as 50 sentences with ViT-B/32's (0.3 s) and 150 with the smallest model's.
#: With several times as many it pays from the second evaluation on; on a GPU 0.3 s are lost or won, and nobody notices.
FEWEST_SENTENCES = 256
#: Together; those of ImageNet's thousand classes take 2 MB.
_MOST_BYTES = 500_000_000
_STALE_SECONDS = 3600.0
_NAME, _CHECKSUM = "weights", "blake2b"
#: What the text features do not depend on.
_IMAGE_SIDE = ("visual.", "image_encoder.", "image_projection.", "logit_scale", "logit_bias")


class RememberedClassifiers:
    """A folder of classifiers.

    Args:
        folder: made where there is none.
        most_bytes: those that were used longest ago are removed beyond it.
    """

    def __init__(self, folder: Path, most_bytes: int = _MOST_BYTES) -> None:
        self.folder = folder
        self.most_bytes = most_bytes

    def key(
        self, model: CLIP | DualEncoder, tokenize: Tokenize, classes: Sequence[str], templates: Sequence[str]
    ) -> str | None:
        """What a classifier is known by; None where it is not worth it, or the tokenizer does not tell what it does."""
        fingerprint = getattr(tokenize, "fingerprint", None)
        if len(classes) * len(templates) < FEWEST_SENTENCES or fingerprint is None:
            return None
        facts = {
            "format": _FORMAT,
            "torch": torch.__version__,
            "arithmetic": _arithmetic(model.logit_scale.device),
            "tokenizer": [fingerprint, getattr(tokenize, "context_length", None)],
            "classes": list(classes),
            "templates": list(templates),
            "text_tower": _settings(model),
        }
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16)
        _add_weights(digest, model)
        return digest.hexdigest()

    def load(self, key: str) -> Float[Tensor, "classes embed"] | None:
        """A classifier, on the CPU, if it is there and whole; a file that is not whole is removed."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                weights: Tensor = file.get_tensor(_NAME)
                is_whole = (file.metadata() or {}).get(_CHECKSUM) == _checksum(weights)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            is_whole = False
        with contextlib.suppress(OSError):
            if is_whole:
                os.utime(path)  # those that were used longest ago are removed first
            else:
                path.unlink()
        return weights if is_whole else None

    def store(self, key: str, weights: Float[Tensor, "classes embed"]) -> None:
        """Keep a classifier. Where that cannot be (a full disk, no right to write) it is not: a cache is no result."""
        path = self._path(key)
        making = path.with_name(f"{key}.{secrets.token_hex(8)}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            plain = weights.detach().cpu().contiguous()
            save_file({_NAME: plain}, making, {_CHECKSUM: _checksum(plain)})
            making.replace(path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                making.unlink()
            return
        self._make_room(path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self, newest: Path) -> None:
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                status = path.stat()
                if path.suffix == ".tmp":
                    if time.time() - status.st_mtime > _STALE_SECONDS:
                        path.unlink()
                elif path != newest:
                    files.append((status.st_mtime, status.st_size, path))
        with contextlib.suppress(OSError):
            total = newest.stat().st_size + sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self.most_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size


def remembered_classifiers() -> RememberedClassifiers | None:
    """Those in the folder of LAKECLIP_CACHE; None where LAKECLIP_CACHE_GB=0 says that nothing is to be kept."""
    limit = limit_gb()
    if limit == 0:
        return None
    most = _MOST_BYTES if limit is None else min(_MOST_BYTES, int(limit * 1e9))
    return RememberedClassifiers(cache_folder() / "classifiers", most)


def _arithmetic(device: torch.device) -> list[Any]:
    """What decides the last digits, and with autocast the third: a file must hold what would be computed now."""
    autocast = None
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        autocast = torch.get_autocast_dtype(device.type)
    return [device.type, torch.get_float32_matmul_precision(), autocast]


def _settings(model: CLIP | DualEncoder) -> dict[str, Any]:
    """What the weights' names and shapes do not say: the number of heads, how features are pooled."""
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
    """Names, types, shapes and bytes of all that may be of the text side."""
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(_IMAGE_SIDE):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))


def _checksum(weights: Tensor) -> str:
    return hashlib.blake2b(_bytes(weights), digest_size=16).hexdigest()


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
