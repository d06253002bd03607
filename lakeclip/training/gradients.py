"""What the gradients of a step come to: their norms, agreed between the processes together with the loss; clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

#: Modules of `CLIP` and `DualEncoder` that see images; the other parameters with a dimension are the text tower's.
_IMAGE_TOWER = ("visual.", "image_encoder.", "image_projection.")


class Agreed(NamedTuple):
    """What all processes know of a step, to the bit the same.

    Attributes:
        loss: mean over the processes.
        stop: one of them was asked to stop.
        save: one of them finds that a checkpoint is due.
        image_norm, text_norm: of the towers' gradients.
        grad_norm: of all parameters' gradients.
    """

    loss: float
    stop: bool
    save: bool
    image_norm: float
    text_norm: float
    grad_norm: float


@torch.no_grad()
def agree(
    model: nn.Module,
    loss: Tensor,
    *,
    scalars: Sequence[nn.Parameter],
    factor: float,
    stop: bool = False,
    save: bool = False,
) -> Agreed:
    """Loss, norms and the wishes to stop and to save, in one collective and one read from the device a step.

    Gradients that the processes have averaged already are equal on all of them; the norms travel all the same, so that
    no rounding can make one process decide otherwise than the others. Of sharded gradients each process has a part.

    Args:
        loss: this process's.
        scalars: parameters of the loss, such as the temperature, in the model or beside it.
        factor: what the gradients are yet to be multiplied by, such as the inverse of the scale of float16.
        stop: whether this process was asked to stop.
        save: whether this process finds that a checkpoint is due.
    """
    image, text = by_tower(model)
    sharded = any(isinstance(parameter, DTensor) for parameter in (*image, *text))
    squares = [_squared_norm(gradients(part)) for part in (image, text)]
    single = [parameter.grad for parameter in scalars if parameter.grad is not None]
    precise = torch.promote_types(loss.dtype, torch.float32)
    own = torch.cat(
        [
            loss.detach().to(precise).view(1),
            torch.tensor([float(stop), float(save)], device=loss.device, dtype=precise),
            *(square.to(loss.device, precise).view(1) for square in squares),
            *(gradient.to(precise).view(1) for gradient in single),
        ]
    )
    world = 1
    if dist.is_available() and dist.is_initialized() and (world := dist.get_world_size()) > 1:
        dist.all_reduce(own)
        own /= world
        if sharded:
            # Nobody else averages what fully_shard was told to leave alone.
            for gradient, mean in zip(single, own[5:], strict=True):
                gradient.copy_(mean)
    mean_loss, stops, saves, image_square, text_square, *rest = own.tolist()
    if sharded:
        image_square, text_square = image_square * world, text_square * world
    total = image_square + text_square + sum(value * value for value in rest)
    norms = (factor * _root(square) for square in (image_square, text_square, total))
    return Agreed(mean_loss, stops > 0, saves > 0, *norms)


@torch.no_grad()
def clip(model: nn.Module, grad_norm: float, max_norm: float | None, factor: float = 1.0) -> None:
    """Multiply all gradients by `factor`, and further down to `max_norm` where they would be longer.

    Args:
        grad_norm: of the gradients after `factor`.
    """
    if max_norm is not None and math.isfinite(grad_norm) and grad_norm > max_norm:
        factor *= max_norm / grad_norm
    if factor != 1.0:
        torch._foreach_mul_(gradients(list(model.parameters())), factor)


def gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients that there are, of sharded parameters this process's part."""
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in found]


def by_tower(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the image tower and of the text tower, without scalars."""
    image: list[nn.Parameter] = []
    text: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim:
            (image if name.startswith(_IMAGE_TOWER) else text).append(parameter)
    return image, text


def _squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros(())
    norms = torch._foreach_norm(filled, 2.0, dtype=torch.promote_types(filled[0].dtype, torch.float32))
    return torch.stack(norms).square().sum()


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan
