"""Several gloo processes compared with one: gradients under any strategy, micro-batch and accumulation; the guard."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.overrides.distributed import prepare_for_backward
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from lakeclip.checkpoints.folder import LAST, SKIPPED
from lakeclip.losses import contrastive_loss
from lakeclip.training import sharding
from lakeclip.training.grad_cache import backward_through_batch
from lakeclip.training.gradients import reduce_step_stats
from lakeclip.training.guard import Guard
from tests.integration.processes import exit_immediately, free_port, run_on_processes
from tests.integration.test_train import assert_same_weights, curves, progress, start, train_args
from tests.unit.training.test_grad_cache import VIT, Towers
from tests.unit.training.test_guard import batches
from tests.unit.training.test_module import trainer, wrapper

#: (pairs per process, micro-batch, batches per step)
SIZES = [(10, 4, 1), (7, 16, 1), (1, 1, 1), (3, 2, 2), (2, None, 3)]


def data(size: int, number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 32, 32, dtype=torch.float64, generator=generator)
    return images, torch.randint(1, 50, (size, 12), generator=generator)


def whole_gradients(towers: Towers, size: int, accumulate: int) -> dict[str, Tensor]:
    """Compute the gradients of the mean loss in one process, each global batch at once."""
    towers.zero_grad()
    for number in range(accumulate):
        images, texts = towers.embed(*data(size, number))
        logits = towers.clip.logit_scale.exp() * images @ texts.T
        own = torch.arange(size)
        loss = nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)
        (loss / 2 / accumulate).backward()
    return {name: p.grad.clone() for name, p in towers.named_parameters() if p.grad is not None}


def step(
    towers: Towers,
    wrapped: Any,
    rank: int,
    size: int,
    minibatch_size: int | None,
    accumulate: int,
) -> Tensor:
    """Do what `ContrastiveModule.training_step` does, up to the optimiser."""
    towers.zero_grad()

    def no_sync() -> AbstractContextManager[Any]:
        if wrapped is None:
            return sharding.no_sync(towers.clip)  # type: ignore[arg-type]
        held: AbstractContextManager[Any] = wrapped.no_sync()
        return held

    def backward(scalar: Tensor) -> None:
        if wrapped is not None:
            prepare_for_backward(wrapped, scalar)
        (scalar / accumulate).backward()  # type: ignore[no-untyped-call]

    losses = []
    for number in range(accumulate):
        is_last = number == accumulate - 1
        images, ids = (side[rank * size : (rank + 1) * size] for side in data(size * dist.get_world_size(), number))
        with nullcontext() if is_last else no_sync():
            result = backward_through_batch(
                images,
                ids,
                model=towers,
                embed=towers.embed,
                loss=lambda images, texts: contrastive_loss(images, texts, towers.clip.logit_scale),
                scalars=(towers.clip.logit_scale,),
                minibatch_size=minibatch_size,
                backward=backward,
                no_sync=no_sync if is_last else nullcontext,
            )
        losses.append(result.loss)
    return torch.stack(losses).mean()


def rank_steps(rank: int, world: int, strategy: str) -> None:
    whole, towers = Towers(VIT), Towers(VIT)
    wrapped = DistributedDataParallel(towers) if strategy == "ddp" else None
    if wrapped is None:
        sharding.shard(towers.clip, init_device_mesh("cpu", (world,)))
    for size, minibatch_size, accumulate in SIZES:
        expected = whole_gradients(whole, size * world, accumulate)
        loss = step(towers, wrapped, rank, size, minibatch_size, accumulate)
        stats = reduce_step_stats(towers.clip, loss, scalars=[towers.clip.logit_scale], stop=rank == 1, factor=1.0)
        found = {name: p.grad for name, p in towers.named_parameters()}
        assert found.keys() == expected.keys()
        total = 0.0
        for name, gradient in found.items():
            assert gradient is not None, name
            full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            torch.testing.assert_close(
                full, expected[name], rtol=1e-10, atol=1e-13, msg=lambda m, n=name, s=size: f"{n} of {s}: {m}"
            )
            total += float(expected[name].square().sum())
        assert stats.grad_norm == pytest.approx(math.sqrt(total), rel=1e-10)
        assert stats.stop == (world > 1)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_gradients_equal_those_of_the_whole_batch_in_one_process(strategy: str, world: int, tmp_path: Path) -> None:
    """Includes uneven micro-batches and gradient accumulation, in float64."""
    run_on_processes(rank_steps, world, tmp_path, strategy)


# ── the guard ─────────────────────────────────────────────────────────────────────────────────────────────────────


class SaveEarly(L.Callback):
    """Callback that saves a checkpoint after the second step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        if rest[-1] == 1:
            trainer.save_checkpoint(self.path)


def rank_guarded(rank: int, world: int, address: str, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=address, TORCHELASTIC_RUN_ID="test", GROUP_RANK="0")
    module = wrapper(lr=1e-3, guard=Guard(2, folder))
    fit = trainer(
        folder,
        max_epochs=1,
        enable_checkpointing=False,
        devices=world,
        strategy="ddp",
        use_distributed_sampler=False,
        callbacks=[SaveEarly(folder / LAST)],
    )
    # Each process has its own half of each global batch. Only the second process has bad rows.
    own: DataLoader[Any] = batches(9, bad=(3, 5, 6) if rank == 1 else ())
    own.dataset[3].rows.add_(1000 * rank)  # type: ignore[attr-defined]
    fit.fit(module, own)
    assert fit.global_step == 9
    torch.save(module.state_dict(), folder / f"{rank}.pt")
    exit_immediately()


@pytest.mark.slow
def test_two_processes_skip_the_same_steps_and_roll_back_together(tmp_path: Path) -> None:
    """The second process has a non-finite row once, then twice in a row."""
    mp.spawn(rank_guarded, args=(2, str(free_port()), tmp_path), nprocs=2)
    entries = [json.loads(line) for line in (tmp_path / SKIPPED).read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [4, 6, 7]
    assert entries[0]["suspects"] == {"rows": [1014]}
    assert entries[0]["rows"] == {"rows": [12, 13, 14, 15, 1012, 1013, 1014, 1015]}
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in one.items():
        assert bool(value.isfinite().all())
        assert torch.equal(value, other[name]), name


# ── whole runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def two_process_args(arguments: list[str]) -> list[str]:
    """Return the arguments of the same run with half the batch on each of two processes, in micro-batches."""
    two = [*arguments, "--devices", "2", "--minibatch-size", "3"]
    two[two.index("--batch-size") + 1] = "4"
    return two


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one_with_accumulation_and_clipping(
    strategy: str, pairs_lake: Path, tiny_models: Path, tmp_path: Path
) -> None:
    more = ("--max-steps", "4", "--accumulate", "2", "--max-grad-norm", "0.5")
    for name, arguments in (
        ("one", train_args(pairs_lake, tiny_models, tmp_path, "one", *more)),
        ("two", two_process_args(train_args(pairs_lake, tiny_models, tmp_path, "two", *more, "--strategy", strategy))),
    ):
        with start(arguments) as process:
            output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, output + errors
        assert errors == "", name
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    assert progress(tmp_path / "one") == progress(tmp_path / "two") == {"step": 4, "epoch": 0, "samples_seen": 64}
    for column in ("train/loss", "train/grad_norm", "train/grad_norm_image", "train/grad_norm_text"):
        found = [[float(row[column]) for row in curves(tmp_path / name) if row[column]] for name in ("one", "two")]
        assert len(found[0]) == 4, "one point per step"
        assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_torchrun_run_resumes_with_one_process(
    strategy: str, pairs_lake: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """Checkpoints contain unsharded weights and states: after an epoch one process resumes the run."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    launcher += [str(free_port()), "-m", "lakeclip"]
    arguments = two_process_args(
        train_args(pairs_lake, tiny_models, tmp_path, "two", "--strategy", strategy, "--max-epochs", "1")
    )
    del arguments[arguments.index("--devices") : arguments.index("--devices") + 2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert progress(tmp_path / "two")["step"] == 27
    two = str(tmp_path / "two")
    alone = ["--devices", "1", "--strategy", "auto", "--batch-size", "8", "--max-epochs", "2"]
    with start(["train", "--resume", two, *alone]) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, output + errors
    assert progress(tmp_path / "two")["step"] == 54
