"""FSDP2: weights, gradients and optimiser states sharded over the devices (`torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

#: Value of `--strategy`.
STRATEGY = "fsdp2"


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model over a one-dimensional mesh; a no-op if it is sharded already.

    Blocks of transformers and residual networks are gathered one at a time, all other parameters together. Scalars such
    as the temperature are replicated: `gradients.reduce_step_stats` averages their gradients.
    """
    if isinstance(model, FSDPModule):
        return
    for stack in [part for part in model.modules() if isinstance(part, (nn.ModuleList, nn.Sequential))]:
        for block in stack.children():
            # A block has nested children, or more than three; a bare layer in a sequence is too small to gather alone.
            if any(list(part.children()) for part in block.children()) or len(list(block.children())) > 3:
                methods = [name for name in vars(type(block)) if name[0] != "_" and name != "forward"]
                fully_shard(block, mesh=mesh)
                _gather_weights_in(block, methods)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    _gather_weights_in(model, ["encode_image", "encode_text"])


def _gather_weights_in(model: nn.Module, methods: Iterable[str]) -> None:
    """Gather the weights in calls of these methods too; by default FSDP2 does so only in `forward`."""
    for method in methods:
        if callable(getattr(model, method)):
            register_fsdp_forward_method(model, method)


@contextmanager
def no_sync(model: FSDPModule) -> Iterator[None]:
    """Accumulate unsharded gradients on each device instead of reducing and sharding them."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
