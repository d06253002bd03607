"""Gradient norms of a step, reduced over the processes together with the loss; gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lakeclip.models.layers import IMAGE_TOWER_PREFIXES


class StepStats(NamedTuple):
    """Statistics of a step, bit-identical on all processes.

    Attributes:
        loss: mean over the processes.
        stop: a process was asked to stop.
        save: a checkpoint is due on a process.
        image_norm, text_norm: norms of each tower's gradients.
        grad_norm: norm of all parameters' gradients.
    """

    loss: float
    stop: bool
    save: bool
    image_norm: float
    text_norm: float
    grad_norm: float


@torch.no_grad()
def reduce_step_stats(
    model: nn.Module,
    loss: Tensor,
    *,
    scalars: Sequence[nn.Parameter],
    factor: float,
    stop: bool = False,
    save: bool = False,
) -> StepStats:
    """Reduce the loss, the norms and the stop and save requests, in one collective and one read from the device.

    After DDP the gradients are equal on all processes. Their norms are reduced all the same, so that rounding cannot
    make one process decide differently from the others. Of sharded gradients each process holds a part.

    Args:
        loss: loss of this process.
        scalars: parameters of the loss, such as the temperature, in the model or beside it.
        factor: factor that the gradients are still to be multiplied by, such as the inverse loss scale of float16.
        stop: True if this process was asked to stop.
        save: True if a checkpoint is due on this process.
    """
    image, text = parameters_by_tower(model)
    sharded = any(isinstance(parameter, DTensor) for parameter in (*image, *text))
    squares = [_squared_norm(local_gradients(part)) for part in (image, text)]
    single = [parameter.grad for parameter in scalars if parameter.grad is not None]
    precise = torch.promote_types(loss.dtype, torch.float32)
    reduced = torch.cat(
        [
            loss.detach().to(precise).view(1),
            torch.tensor([float(stop), float(save)], device=loss.device, dtype=precise),
            *(square.to(loss.device, precise).view(1) for square in squares),
            *(gradient.to(precise).view(1) for gradient in single),
        ]
    )
    world = 1
    if dist.is_available() and dist.is_initialized() and (world := dist.get_world_size()) > 1:
        dist.all_reduce(reduced)
        reduced /= world
        if sharded:
            # fully_shard does not average the parameters that it was told to ignore.
            for gradient, mean in zip(single, reduced[5:], strict=True):
                gradient.copy_(mean)
    mean_loss, stops, saves, image_square, text_square, *rest = reduced.tolist()
    if sharded:
        image_square, text_square = image_square * world, text_square * world
    total = image_square + text_square + sum(value * value for value in rest)
    norms = (factor * _root(square) for square in (image_square, text_square, total))
    return StepStats(mean_loss, stops > 0, saves > 0, *norms)


@torch.no_grad()
def clip_gradients(model: nn.Module, grad_norm: float, max_norm: float | None, factor: float = 1.0) -> None:
    """Multiply all gradients by `factor`, and scale them down to `max_norm` if their norm exceeds it.

    Args:
        grad_norm: norm of the gradients after multiplication by `factor`.
    """
    if max_norm is not None and math.isfinite(grad_norm) and grad_norm > max_norm:
        factor *= max_norm / grad_norm
    if factor != 1.0:
        torch._foreach_mul_(local_gradients(list(model.parameters())), factor)


def local_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradients that are not None; of sharded parameters, this process's shard."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]


def parameters_by_tower(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters of the image tower and those of the text tower, without scalars."""
    image: list[nn.Parameter] = []
    text: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim:
            (image if name.startswith(IMAGE_TOWER_PREFIXES) else text).append(parameter)
    return image, text


def _squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    nonempty = [tensor for tensor in tensors if tensor.numel()]
    if not nonempty:
        return torch.zeros(())
    norms = torch._foreach_norm(nonempty, 2.0, dtype=torch.promote_types(nonempty[0].dtype, torch.float32))
    return torch.stack(norms).square().sum()


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan
