"""AdamW with 8-bit states (Dettmers et al. 2021, arXiv 2110.02861) from torchao, an optional package."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch.optim import Optimizer

from lakeclip.errors import ConfigError

#: Number of parameters that share one float32 scale.
BLOCK_SIZE = 256
_AVERAGES = ("exp_avg", "exp_avg_sq")


def eight_bit_adamw(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> Optimizer:
    """Create torchao's AdamW with 8-bit states and stochastic rounding of bfloat16 weights.

    Its state dict holds plain tensors, so that a checkpoint can be read without torchao.

    Raises:
        ConfigError: torchao is not installed.
    """
    require_torchao()
    adamw_class = _import_torchao("torchao.optim").AdamW8bit
    optimizer = cast(
        "Optimizer",
        adamw_class(groups, lr=lr, betas=betas, eps=eps, block_size=BLOCK_SIZE, bf16_stochastic_round=True),
    )
    optimizer.register_state_dict_post_hook(_to_plain)
    optimizer.register_load_state_dict_pre_hook(_from_plain)
    return optimizer


def require_torchao() -> None:
    """Check at the start of a run that torchao is installed.

    Raises:
        ConfigError: torchao is not installed.
    """
    if find_spec("torchao") is None:
        raise ConfigError(
            "8-bit states (--states 8bit) need torchao, which is not installed",
            next_step="pip install 'lakeclip[low-bit]', or --states bf16, which needs no extra package",
        )


def _import_torchao(module: str) -> Any:
    """Import a module of torchao, without its warnings about kernels for GPUs that this machine may not have."""
    logging.disable(logging.WARNING)
    try:
        return import_module(module)
    finally:
        logging.disable(logging.NOTSET)


def _to_plain(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Split torchao's tensor subclasses into plain tensors."""
    state = {key: dict(entry) for key, entry in state_dict["state"].items()}
    for entry in state.values():
        for name in _AVERAGES:
            average = entry[name]
            if type(average) is not torch.Tensor:
                inner_names, (signed, dtype) = average.__tensor_flatten__()
                inner = {inner_name: getattr(average, inner_name) for inner_name in inner_names}
                entry[name] = inner | {"signed": signed, "dtype": dtype}
    return {**state_dict, "state": state}


def _from_plain(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Build torchao's tensor subclasses from plain tensors."""
    tensor_class = _import_torchao("torchao.optim.subclass_8bit").OptimState8bit
    state = {key: dict(entry) for key, entry in state_dict["state"].items()}
    for entry in state.values():
        for name in _AVERAGES:
            if isinstance(entry[name], dict):
                entry[name] = tensor_class(**entry[name])
    return {**state_dict, "state": state}
