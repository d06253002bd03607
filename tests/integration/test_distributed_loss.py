"""Several gloo processes against one: the loss and its gradients are those of the global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from lakeclip.losses import contrastive_loss
from tests.unit.losses.test_contrastive import dense, pairs


def rank_gradients(rank: int, world: int, address: str, expected: Tensor) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    images, texts, scale = pairs(3 * world)
    own = slice(3 * rank, 3 * rank + 3)
    inputs = [images[own].clone().requires_grad_(), texts[own].clone().requires_grad_(), scale.requires_grad_()]
    loss = contrastive_loss(*inputs)
    loss.backward()
    # DistributedDataParallel takes the mean of the processes' gradients.
    mean_loss, scale_gradient = loss.detach() / world, scale.grad / world
    torch.distributed.all_reduce(mean_loss)
    torch.distributed.all_reduce(scale_gradient)
    whole = [tensor.clone().requires_grad_() for tensor in pairs(3 * world)]
    dense(*whole).backward()
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(mean_loss, expected, **close)
    torch.testing.assert_close(scale_gradient, whole[2].grad, **close)
    torch.testing.assert_close(inputs[0].grad / world, whole[0].grad[own], **close)
    torch.testing.assert_close(inputs[1].grad / world, whole[1].grad[own], **close)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_equal_one(world: int, tmp_path: Path) -> None:
    """Defects 6 and 9: the towers' and the scale's gradients, and the loss, are those of the global batch."""
    expected = dense(*pairs(3 * world))
    mp.spawn(rank_gradients, args=(world, f"file://{tmp_path}/store", expected), nprocs=world)
