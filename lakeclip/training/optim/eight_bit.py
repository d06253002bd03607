"""Adam's running averages in 8 bits (Dettmers et al. 2021, arXiv 2110.02861), by torchao, an optional package."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch.optim import Optimizer

from lakeclip.errors import ConfigError

#: Parameters that share one float32 scale.
BLOCK = 256
_AVERAGES = ("exp_avg", "exp_avg_sq")


def eight_bit_adamw(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> Optimizer:
    """torchao's AdamW with 8-bit states; bfloat16 weights are rounded stochastically.

    What it saves are plain tensors, so that a checkpoint can be read where torchao is not.

    Raises:
        ConfigError: torchao is not installed.
    """
    require_torchao()
    made = _torchao("torchao.optim").AdamW8bit(
        groups, lr=lr, betas=betas, eps=eps, block_size=BLOCK, bf16_stochastic_round=True
    )
    optimizer = cast("Optimizer", made)
    optimizer.register_state_dict_post_hook(_to_plain)
    optimizer.register_load_state_dict_pre_hook(_from_plain)
    return optimizer


def require_torchao() -> None:
    """For a run to say at its start what it will need.

    Raises:
        ConfigError: torchao is not installed.
    """
    if find_spec("torchao") is None:
        raise ConfigError(
            "8-bit states (--states 8bit) are torchao's, and it is not installed",
            next_step="pip install 'lakeclip[low-bit]', or --states bf16, which needs no other package",
        )


def _torchao(module: str) -> Any:
    """Without the warnings about kernels for GPUs that this machine may not have."""
    logging.disable(logging.WARNING)
    try:
        return import_module(module)
    finally:
        logging.disable(logging.NOTSET)


def _to_plain(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """torchao's tensors taken apart."""
    state = {key: dict(entry) for key, entry in state_dict["state"].items()}
    for entry in state.values():
        for name in _AVERAGES:
            average = entry[name]
            if type(average) is not torch.Tensor:
                parts, (signed, dtype) = average.__tensor_flatten__()
                entry[name] = {part: getattr(average, part) for part in parts} | {"signed": signed, "dtype": dtype}
    return {**state_dict, "state": state}


def _from_plain(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """… and put together again."""
    kind = _torchao("torchao.optim.subclass_8bit").OptimState8bit
    state = {key: dict(entry) for key, entry in state_dict["state"].items()}
    for entry in state.values():
        for name in _AVERAGES:
            if isinstance(entry[name], dict):
                entry[name] = kind(**entry[name])
    return {**state_dict, "state": state}
