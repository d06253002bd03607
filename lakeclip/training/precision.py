"""Precision of a run on its device: what `--precision auto` means there, and a warning if bfloat16 is slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar

import torch

from lakeclip.config.schema import FinetuneConfig, TrainConfig, TrainerConfig
from lakeclip.errors import InputWarning
from lakeclip.models.bfloat16_support import Bfloat16Support, bfloat16_support, precision_warning

_Config = TypeVar("_Config", bound=TrainConfig | FinetuneConfig)


def run_device(trainer: TrainerConfig) -> str:
    """Return the kind of device that a run computes on: cpu, cuda, mps or tpu."""
    if trainer.accelerator in ("cpu", "tpu"):
        return trainer.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(config: _Config) -> _Config:
    """Replace the precision `auto` by bf16 where the run's device computes fast in it, and by 32 elsewhere.

    The run's configuration records the result, so that a resumed or repeated run computes as the first one did.
    """
    if config.trainer.precision != "auto":
        return config
    precision = auto_precision(_support(config.trainer))
    return replace(config, trainer=replace(config.trainer, precision=precision))


def auto_precision(support: Bfloat16Support) -> Literal["32", "bf16"]:
    """Return what `auto` means with this support of bfloat16."""
    return "bf16" if support.is_fast else "32"


def precision_warnings(config: TrainConfig | FinetuneConfig) -> list[InputWarning]:
    """Return a warning for each setting that computes in bfloat16 on a device without instructions for it."""
    uses = []
    if config.trainer.precision == "bf16":
        uses.append(("--precision bf16", "--precision 32"))
    if config.optimizer.text_weights == "bf16":
        uses.append(("--text-weights bf16, with which the text tower computes in bfloat16,", "--text-weights 32"))
    if not uses:
        return []
    support = _support(config.trainer)
    kind = "gpu" if run_device(config.trainer) == "cuda" else "cpu"
    warnings = [precision_warning(support, use, flag, device=kind) for use, flag in uses]  # type: ignore[arg-type]
    return [warning for warning in warnings if warning is not None]


def _support(trainer: TrainerConfig) -> Bfloat16Support:
    device = run_device(trainer)
    if device == "tpu":
        return Bfloat16Support(True, "TPUs compute in bfloat16")
    return bfloat16_support(device)
