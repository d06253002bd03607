"""Learning rate schedule: linear warm-up, then half a cosine down to zero (Radford et al. 2021, section 2.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

#: The paper's warm-up, for runs of hundreds of thousands of steps.
PAPER_WARMUP_STEPS = 2_000


def warmup_steps(total_steps: int, requested: int | None = None) -> int:
    """Return the number of warm-up steps: the requested one, or the paper's but at most a tenth of the run."""
    return min(PAPER_WARMUP_STEPS, total_steps // 10) if requested is None else requested


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Return the share of the peak learning rate at a step.

    Args:
        step: the step about to be taken, from 0.
        warmup: number of warm-up steps; the peak is reached on the last of them.
        total: number of steps in the whole run.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


#: Settings of a parameter group that a checkpoint stores beside the state, as PyTorch names them.
_SETTINGS = ("betas", "eps", "weight_decay", "momentum")


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each parameter group of a new optimiser, to be applied again after a resume."""
    names = ("lr", *_SETTINGS)
    return [{name: _plain(group[name]) for name in names if name in group} for group in optimizer.param_groups]


def apply_settings(schedule: LambdaLR, settings: Sequence[dict[str, Any]]) -> None:
    """Apply the settings of a run to its optimiser and schedule, in place of those that a checkpoint restored.

    Args:
        schedule: the restored schedule, which knows the number of steps done.
        settings: of each group, as `group_settings` returned them.
    """
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [group["lr"] for group in settings]
    for group, new, share in zip(groups, settings, schedule.lr_lambdas, strict=True):
        for name in _SETTINGS:
            if name in new:
                _set(group, name, new[name])
        _set(group, "initial_lr", new["lr"])
        _set(group, "lr", new["lr"] * share(schedule.last_epoch))
    schedule._last_lr = [_plain(group["lr"]) for group in groups]


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(group.get(name), torch.Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value
