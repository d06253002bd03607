"""AdamW with stochastic rounding of bfloat16 running averages and weights (Radford et al. 2021, section 2.5).

One chunk of a parameter at a time is widened to float32, updated by PyTorch's fused kernel, and rounded. So the
arithmetic is that of `torch.optim.AdamW`, and a step needs extra memory for one chunk only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lakeclip.training.optim.stochastic_rounding import RoundingBits, stochastic_round_

#: Elements per chunk. On a CPU the float32 copies fit into a core's cache; other devices need large kernel launches.
_CHUNK_SIZE = {"cpu": 1 << 17}
_DEFAULT_CHUNK_SIZE = 1 << 22
_AVERAGES = ("exp_avg", "exp_avg_sq")


class RoundedAdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017), for states and weights of any floating dtype.

    bfloat16 tensors are rounded stochastically. With rounding to nearest, the second moment would stay too large once
    the gradients become smaller, and small updates of a weight would be lost.

    Args:
        params: parameters or groups of them.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        state_dtype: dtype of the running averages. Default: float32, or the parameter's dtype if that is wider.
        seed: seed of the rounding. Processes that hold the same weights need the same seed.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        state_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self._state_dtype = state_dtype
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed, "rounds": 0},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        largest: dict[torch.device, int] = {}
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            largest[parameter.device] = max(largest.get(parameter.device, 1), _local(parameter).numel())
        first = self.param_groups[0]
        updaters = {
            device: _ChunkUpdater(device, size, first["seed"], first["rounds"]) for device, size in largest.items()
        }
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), device=parameter.device, dtype=torch.float32)
                    for name in _AVERAGES:
                        state[name] = self._zeros(parameter)
                state["step"] += 1
                updaters[parameter.device].update(parameter, state, group)
        first["rounds"] += 1
        return loss

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state bit for bit. PyTorch would convert the averages to the dtype of their weight."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(group["params"], saved["params"], strict=True):
                for name in _AVERAGES if key in state_dict["state"] else ():
                    self.state[parameter][name] = self._zeros(parameter).copy_(state_dict["state"][key][name])

    def _zeros(self, parameter: Tensor) -> Tensor:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        return torch.zeros_like(parameter, dtype=self._state_dtype or wide)


class _ChunkUpdater:
    """Float32 buffers in which the chunks of one step are widened, updated and rounded.

    The rows of the float32 buffer are the two averages, the weight, and the gradient; only the first three are rounded.
    """

    def __init__(self, device: torch.device, largest: int, seed: int, step: int) -> None:
        self._chunk_size = min(largest, _CHUNK_SIZE.get(device.type, _DEFAULT_CHUNK_SIZE))
        self._wide = torch.empty(4, self._chunk_size, device=device, dtype=torch.float32)
        self._random_bits = RoundingBits(seed, step, 3, self._chunk_size, device)

    def update(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Update one parameter."""
        gradient = _local(parameter.grad)
        weight = _local(parameter)
        if gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight).copy_(gradient)
        # The two averages, the weight and the gradient, flat in memory order.
        tensors = [_flat(_local(state[name])) for name in _AVERAGES] + [_flat(weight), _flat(gradient)]
        narrow = [row for row, tensor in enumerate(tensors) if tensor.dtype == torch.bfloat16]
        rounded = [row for row in narrow if row < 3]
        for start in range(0, weight.numel(), self._chunk_size):
            chunks = [tensor[start : start + self._chunk_size] for tensor in tensors]
            columns = len(chunks[0])
            wide = list(chunks)
            for row in narrow:
                wide[row] = self._wide[row, :columns].copy_(chunks[row])
            torch._fused_adamw_(
                [wide[2]],
                [wide[3]],
                [wide[0]],
                [wide[1]],
                [],
                [state["step"]],
                lr=float(group["lr"]),
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            if not rounded:
                continue
            rows = slice(rounded[0], rounded[-1] + 1)
            stochastic_round_(self._wide[rows, :columns], self._random_bits.next_bits(rows, columns))
            for row in rounded:
                chunks[row].copy_(wide[row])


def _local(tensor: Tensor | None) -> Tensor:
    """Return this process's shard of a tensor, or the whole tensor if it is not sharded."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _flat(tensor: Tensor) -> Tensor:
    """Return a flat view in memory order, which differs from the logical order for channels-last convolutions."""
    return tensor.as_strided((tensor.numel(),), (1,))
