"""A configuration as the command that stands for it: what the doors of the seed print, and what errors offer next."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from lakeclip.config.schema import FinetuneConfig, TrainConfig


def command(config: TrainConfig | FinetuneConfig) -> str:
    """The command line with a flag for every setting that is not the default."""
    verb = "train" if isinstance(config, TrainConfig) else "finetune"
    return " ".join(["lakeclip", verb, *(shlex.quote(word) for word in _flags(config, type(config)()))])


def _flags(config: Any, default: Any) -> list[str]:
    words: list[str] = []
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            words += _flags(value, usual)
        elif value != usual:
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, tuple):
                words += [f"--{flag}", *(str(part) for part in value)]
            else:
                words += [f"--{flag}", str(value)]
    return words
