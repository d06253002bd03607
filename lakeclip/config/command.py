"""Configurations formatted as the equivalent command line, for error messages and the train-CLIP commands."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from lakeclip.config.schema import FinetuneConfig, TrainConfig


def format_command(config: TrainConfig | FinetuneConfig) -> str:
    """Return the command line of a configuration, with a flag for every setting that differs from its default."""
    verb = "train" if isinstance(config, TrainConfig) else "finetune"
    return " ".join(["lakeclip", verb, *(shlex.quote(word) for word in _flags(config, type(config)()))])


def _flags(config: Any, default: Any) -> list[str]:
    flags: list[str] = []
    for field in dataclasses.fields(config):
        value, default_value = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            flags += _flags(value, default_value)
        elif value != default_value:
            name = field.name.replace("_", "-")
            if isinstance(value, bool):
                flags.append(f"--{name}" if value else f"--no-{name}")
            elif isinstance(value, tuple):
                flags += [f"--{name}", *(str(part) for part in value)]
            else:
                flags += [f"--{name}", str(value)]
    return flags
