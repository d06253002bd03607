"""Several gloo processes compared with one: losses and gradients are those of the global batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from lakeclip.losses import (
    contrastive_loss,
    distillation_loss,
    sigmoid_loss,
    softmax_targets,
    tiles,
    transport_targets,
)
from tests.integration.processes import run_on_processes
from tests.unit.losses.dense import (
    dense_distillation,
    dense_sigmoid,
    dense_softmax,
    dense_transport,
    random_ids,
    random_pairs,
)

_ROWS_PER_RANK = 5


def inputs_of_all(world: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the inputs of all processes together and the ids of all rows, many of them shared across processes."""
    bias = torch.tensor(-2.0, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (*random_pairs(_ROWS_PER_RANK * world), bias)), random_ids(
        _ROWS_PER_RANK * world
    )


def inputs_of_rank(rank: int, world: int) -> tuple[tuple[Tensor, ...], Tensor]:
    inputs, ids = inputs_of_all(world)
    own = slice(_ROWS_PER_RANK * rank, _ROWS_PER_RANK * (rank + 1))
    parts = (inputs[0][own], inputs[1][own], inputs[2], inputs[3])
    return tuple(part.detach().clone().requires_grad_() for part in parts), ids[own]


def dense_soft_targets(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = (2 * scale.exp() * images @ texts.T).detach()
    return dense_distillation(images, texts, scale, logits.softmax(dim=1), logits.softmax(dim=0))


Loss = Callable[..., Tensor]
OBJECTIVES: dict[str, tuple[Loss, Loss]] = {
    "softmax": (lambda i, t, s, b, ids: contrastive_loss(i, t, s), lambda i, t, s, b, ids: dense_softmax(i, t, s)),
    "softmax, smoothed": (
        lambda i, t, s, b, ids: contrastive_loss(i, t, s, label_smoothing=0.1),
        lambda i, t, s, b, ids: dense_softmax(i, t, s, None, 0.1),
    ),
    "softmax, shared ids": (
        lambda i, t, s, b, ids: contrastive_loss(i, t, s, positive_ids=ids, label_smoothing=0.1),
        lambda i, t, s, b, ids: dense_softmax(i, t, s, ids, 0.1),
    ),
    "sigmoid": (lambda i, t, s, b, ids: sigmoid_loss(i, t, s, b), lambda i, t, s, b, ids: dense_sigmoid(i, t, s, b)),
    "sigmoid, shared ids": (
        lambda i, t, s, b, ids: sigmoid_loss(i, t, s, b, positive_ids=ids),
        lambda i, t, s, b, ids: dense_sigmoid(i, t, s, b, ids),
    ),
    "soft targets": (
        lambda i, t, s, b, ids: distillation_loss(i, t, s, softmax_targets(i, t, (2 * s.exp()).log().detach())),
        lambda i, t, s, b, ids: dense_soft_targets(i, t, s),
    ),
    "transport": (
        lambda i, t, s, b, ids: distillation_loss(i, t, s, transport_targets(i, t)),
        lambda i, t, s, b, ids: dense_distillation(i, t, s, *dense_transport(i.detach(), t.detach(), 0.15, 5)),
    ),
}


def compare_with_one_process(rank: int, world: int) -> None:
    close = {"rtol": 1e-12, "atol": 1e-13}
    for name, (streamed, dense) in OBJECTIVES.items():
        for tiles._TILE_SIZE in (2, 1024):
            mine, ids = inputs_of_rank(rank, world)
            loss = streamed(*mine, ids)
            loss.backward()
            whole, every = inputs_of_all(world)
            expected = dense(*whole, every)
            expected.backward()

            def check(found: Tensor, wanted: Tensor, objective: str = name) -> None:
                torch.testing.assert_close(found, wanted, **close, msg=lambda m: f"{objective}: {m}")

            # DistributedDataParallel takes the mean of the processes' gradients.
            mean = loss.detach() / world
            dist.all_reduce(mean)
            check(mean, expected.detach())
            for scalar, wanted in zip(mine[2:], whole[2:], strict=True):
                if wanted.grad is not None:
                    assert scalar.grad is not None
                    gradient = scalar.grad / world
                    dist.all_reduce(gradient)
                    check(gradient, wanted.grad)
            own = slice(_ROWS_PER_RANK * rank, _ROWS_PER_RANK * (rank + 1))
            for features, wanted in zip(mine[:2], whole[:2], strict=True):
                assert features.grad is not None
                assert wanted.grad is not None
                check(features.grad / world, wanted.grad[own])


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_equal_one(world: int, tmp_path: Path) -> None:
    """The towers' and the scalars' gradients, and the loss, are those of the global batch."""
    run_on_processes(compare_with_one_process, world, tmp_path)


def count_messages(rank: int, world: int) -> None:
    inputs, ids = inputs_of_rank(rank, world)
    with CommDebugMode() as comm:
        contrastive_loss(*inputs[:3]).backward()
    # Texts are gathered, the columns' maximum and sum are reduced, and the texts' gradients are reduce-scattered.
    counts = {str(name): number for name, number in comm.get_comm_counts().items()}
    assert counts == {"c10d.allgather_": 1, "c10d.allreduce_": 2, "c10d.reduce_scatter_": 1}, counts
    with CommDebugMode() as comm:
        contrastive_loss(*inputs[:3], positive_ids=ids).backward()
    counts = {str(name): number for name, number in comm.get_comm_counts().items()}
    # One gathers the ids with the texts, the other the number of positives of each row.
    assert counts["c10d.allgather_"] == 2, counts
    with CommDebugMode() as comm:
        contrastive_loss(*inputs[:3], positive_ids=ids, local_only=True).backward()
        sigmoid_loss(*inputs, positive_ids=ids, local_only=True).backward()
    assert comm.get_total_counts() == 0, (
        "validation batches differ in size between processes, so there must be no collective"
    )


@pytest.mark.slow
def test_features_are_gathered_once(tmp_path: Path) -> None:
    run_on_processes(count_messages, 2, tmp_path)
