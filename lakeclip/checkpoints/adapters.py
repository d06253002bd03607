"""Merge the adapters of PEFT (LoRA and DoRA) into the weights of the model that they were trained on.

An adapter folder has adapter_config.json and adapter_model.safetensors: for each adapted layer W two narrow matrices A
and B, so that the layer computes with W + scale · B A (Hu et al. 2021, arXiv 2106.09685).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lakeclip.checkpoints.huggingface_config import read_json
from lakeclip.errors import CheckpointError
from lakeclip.hub import find_weights, resolve_folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

#: Settings that do not change the merged weights, or that the names and shapes of the adapter's tensors show.
_WITHOUT_EFFECT = frozenset(
    (
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying"),
        *("eva_config", "exclude_modules", "fan_in_fan_out", "megatron_core", "inference_mode", "layers_pattern"),
        *("layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "peft_version"),
        *("qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules"),
        *("task_type", "use_dora", "use_rslora"),
    )
)
#: Ways to initialise an adapter that leave the base's weights as they are. Others (PiSSA, CorDA) change the base too.
_INITIAL_VALUES = (True, False, None, "gaussian", "eva", "orthogonal")
_PREFIX = "base_model.model."
#: Modules that PEFT puts between a layer's name and its parameters.
_WRAPPERS = re.compile(r"\.(modules_to_save|base_layer)(\.default)?(?=\.)")
_FACTOR = re.compile(
    r"(?P<layer>.+)\.lora_(?P<kind>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(\.weight)?"
)
_MERGE = "merge it where it was trained: model.merge_and_unload().save_pretrained(FOLDER), then huggingface:FOLDER"


class Adapter(NamedTuple):
    """An adapter folder: its settings and weights, and the folder of the model that it was trained on."""

    folder: Path
    weights: Path
    settings: dict[str, Any]
    base: Path


def read_adapter(folder: Path) -> Adapter:
    """Read the settings of an adapter folder, and find the model that it was trained on.

    Raises:
        CheckpointError: the settings are invalid or unsupported, or the model cannot be found.
    """
    file = folder / ADAPTER_CONFIG
    settings = read_json(file)
    found, allowed = "", ""
    if settings.get("peft_type") != "LORA":
        found, allowed = f"peft_type {settings.get('peft_type')!r}", "LORA"
    elif settings.get("init_lora_weights", True) not in _INITIAL_VALUES:
        found = f"init_lora_weights {settings['init_lora_weights']!r}, which changes the base's weights too"
    else:
        known = {*_WITHOUT_EFFECT, "init_lora_weights"}
        unknown = {name: value for name, value in settings.items() if name not in known and value not in (None, False)}
        found = ", ".join(f"{name}: {value!r}" for name, value in unknown.items() if value not in ({}, []))
    if found:
        raise CheckpointError(
            f"the adapter in {folder} cannot be merged", found=found, allowed=allowed, next_step=_MERGE
        )
    weights = next(
        (folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), folder / ADAPTER_WEIGHTS[0]
    )
    return Adapter(folder, weights, settings, _find_base(folder, settings))


def _find_base(folder: Path, settings: Mapping[str, Any]) -> Path:
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"the adapter in {folder} does not name the model that it was trained on",
            found=f"base_model_name_or_path: {name!r} in {ADAPTER_CONFIG}",
            allowed="a folder, or a model's name on the Hugging Face hub",
            next_step=f"put its folder there; or {_MERGE}",
        )
    revision = settings.get("revision")
    local = Path(name).expanduser()
    # A relative path may be meant from the adapter's folder.
    for candidate in (local, folder / local):
        if candidate.is_dir():
            return candidate
    try:
        base = resolve_folder(f"{name}@{revision}" if revision else name)
    except CheckpointError as error:
        raise CheckpointError(
            f"the adapter in {folder} needs the model that it was trained on, {name}",
            found=error.found or error.what,
            next_step=f"put the folder of that model into {ADAPTER_CONFIG} as base_model_name_or_path; or {_MERGE}",
        ) from None
    if find_weights(base) is None:
        raise CheckpointError(
            f"the adapter in {folder} needs the model that it was trained on, {name}",
            found=f"no weights in {base}" if base.is_dir() else f"no folder {base}",
            next_step=f"put the folder of that model into {ADAPTER_CONFIG} as base_model_name_or_path; or {_MERGE}",
        )
    return base


def merge_adapter(adapter: Adapter, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's weights with the adapter merged into them, in float32 where it changes them.

    Args:
        adapter: the adapter's settings.
        base: weights of the model that the adapter was trained on.
        tensors: the adapter's tensors by PEFT's names.

    Raises:
        CheckpointError: a tensor belongs to no weight of the base, or does not fit it.
    """
    merged = dict(base)
    factors: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name = _WRAPPERS.sub("", key.removeprefix(_PREFIX))
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["layer"], {})[match["kind"]] = value.float()
        elif name not in base or base[name].shape != value.shape:
            raise _misfit(adapter, key, base.get(name))
        else:
            merged[name] = value
    for layer, kinds in factors.items():
        name = f"{layer}.weight"
        if name not in base:
            raise _misfit(adapter, f"{_PREFIX}{layer}.lora_{next(iter(kinds))}", None)
        delta = _delta(adapter, layer, kinds)
        if delta is None or delta.numel() != base[name].numel():
            raise _misfit(adapter, f"{_PREFIX}{layer}.lora_{next(iter(kinds))}", base[name])
        weight = base[name].float() + delta.reshape(base[name].shape)
        if (magnitude := kinds.get("magnitude_vector")) is not None:
            if "embedding_A" in kinds or magnitude.numel() != len(weight):
                raise _misfit(adapter, f"{_PREFIX}{layer}.lora_magnitude_vector", base[name])
            # DoRA (Liu et al. 2024, arXiv 2402.09353): the direction of each row, times a learned length.
            lengths = magnitude.flatten() / weight.flatten(1).norm(dim=1)
            weight = weight * lengths.reshape(-1, *[1] * (weight.ndim - 1))
        merged[name] = weight
    return merged


def _delta(adapter: Adapter, layer: str, kinds: Mapping[str, Tensor]) -> Tensor | None:
    """Return the change of a layer's weight, None if the factors do not fit each other."""
    is_embedding = "embedding_A" in kinds
    a, b = (kinds.get(f"embedding_{name}" if is_embedding else name) for name in "AB")
    if a is None or b is None or a.ndim < 2 or b.ndim < 2 or b.flatten(1).shape[1] != len(a):
        return None
    rank, settings = len(a), adapter.settings
    alpha = _by_pattern(settings.get("alpha_pattern"), layer, settings.get("lora_alpha", 8))
    scale = float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)
    delta = scale * (b.flatten(1) @ a.flatten(1))
    return delta.T if is_embedding else delta


def _by_pattern(patterns: object, layer: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a layer's name, as PEFT does."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return value
    return default


def _misfit(adapter: Adapter, key: str, weight: Tensor | None) -> CheckpointError:
    reason = "does not fit" if weight is not None else "belongs to no weight of"
    return CheckpointError(
        f"the adapter in {adapter.folder} cannot be merged into the model in {adapter.base}",
        found=f"{key}, which {reason} that model",
        next_step=f"if another model was adapted, put its folder into {ADAPTER_CONFIG} as base_model_name_or_path; or "
        + _MERGE,
    )
