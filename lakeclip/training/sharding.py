"""FSDP2: weights, gradients and optimiser states cut up between the devices (`torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

#: What `--strategy` calls it.
NAME = "fsdp2"


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a model up over a mesh of one dimension; a no-op for one that is.

    Blocks of transformers and residual networks are gathered one at a time, what is around them together. Scalars, the
    temperature, stay whole on every device: `gradients.agree` averages their gradients.
    """
    if isinstance(model, FSDPModule):
        return
    for stack in [part for part in model.modules() if isinstance(part, (nn.ModuleList, nn.Sequential))]:
        for block in stack.children():
            # A block has parts with parts of their own; a bare layer in a sequence is too small to gather alone.
            if any(list(part.children()) for part in block.children()) or len(list(block.children())) > 3:
                methods = [name for name in vars(type(block)) if name[0] != "_" and name != "forward"]
                fully_shard(block, mesh=mesh)
                _gather_for(block, methods)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    _gather_for(model, ["encode_image", "encode_text"])


def _gather_for(model: nn.Module, methods: Iterable[str]) -> None:
    """Weights are gathered for `forward`; what calls another method wants them too."""
    for method in methods:
        if callable(getattr(model, method)):
            register_fsdp_forward_method(model, method)


@contextmanager
def no_sync(model: FSDPModule) -> Iterator[None]:
    """Add gradients up on each device, whole, instead of averaging and cutting them up."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
