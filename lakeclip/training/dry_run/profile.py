"""Profile of a run from a few of its steps: their speed and memory, and the speed of the loader alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lakeclip.config.schema import TrainerConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.training.callbacks.checkpoint import CheckpointWriter
from lakeclip.training.callbacks.progress_bar import RunProgress
from lakeclip.training.callbacks.stopping import GracefulStop, ValidateAtEnd
from lakeclip.training.callbacks.throughput import Throughput
from lakeclip.training.memory import peak_memory, reset_peak_memory
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.trainer import make_trainer, quiet_lightning
from lakeclip.types import Batch

#: Callbacks of a run that save, display or validate; profiled steps do without them.
_EXCLUDED_CALLBACKS = (ModelCheckpoint, CheckpointWriter, RunProgress, GracefulStop, ValidateAtEnd)
_MAX_SECONDS = 30.0


@dataclass(frozen=True)
class Footprint:
    """Memory of training on one device, in bytes.

    Attributes:
        weights, gradients, states: parameters, gradients and optimiser states after a step.
        activations: all other memory at the peak of a step.
        program: on a CPU, memory of the process before its first step besides the weights.
    """

    weights: int
    gradients: int
    states: int
    activations: int
    program: int = 0

    @property
    def total(self) -> int:
        """Total memory at the peak of a step."""
        return self.weights + self.gradients + self.states + self.activations + self.program


@dataclass(frozen=True)
class StepProfile:
    """Measurements of a few steps on one device.

    Attributes:
        batches: number of timed batches, without the first ones.
        seconds_first: duration of the first batch, in which kernels are selected and compiled.
        rate: pairs per second of the step alone, with its batches in memory.
        mfu: model FLOPs utilization of the step alone; None if unknown.
        peak: the device's peak FLOPs and their source; empty if unknown.
        first_loss: loss of the first batch.
        footprint: memory of the steps.
    """

    batches: int
    seconds_first: float
    rate: float
    mfu: float | None
    peak: str
    first_loss: float
    footprint: Footprint


def profile_loader(datamodule: PairDataModule, num: int) -> tuple[list[Batch], float]:
    """Load the first batches of a run, at most `num`, and measure the pairs per second of the loader alone.

    Workers deliver their batches almost at the same time, so the first round of batches is a warm-up and not timed.
    """
    loader = datamodule.train_dataloader()
    workers = max(1, datamodule.num_workers)
    num_loaded = min(len(loader), workers * (1 + max(2, -(-num // workers))))
    untimed = min(workers, num_loaded - 1)
    batches: list[Batch] = []
    started = timed_from = time.perf_counter()
    count = 0
    for count, batch in enumerate(loader, start=1):
        if len(batches) < num:
            batches.append(batch)
        now = time.perf_counter()
        if count == untimed:
            timed_from = now
        if count == num_loaded or (now - started > _MAX_SECONDS and count > untimed):
            break
    return batches, (count - untimed) * datamodule.batch_size / max(time.perf_counter() - timed_from, 1e-9)


def profile_steps(
    module: ContrastiveModule, batches: list[Batch], config: TrainerConfig, *, num: int, steps_per_epoch: int
) -> StepProfile:
    """Train on a few batches as the run would, on its first device, and measure speed and memory.

    The trainer, callbacks, precision and schedule are those of the run. The module's weights change; nothing is saved.

    Args:
        batches: batches to repeat.
        num: number of batches to time.
        steps_per_epoch: length of an epoch, which the schedule depends on.

    Raises:
        torch.OutOfMemoryError: a step does not fit on the device.
    """
    torch.set_float32_matmul_precision("high")
    untimed = max(2, config.accumulate)
    timed = -(-num // config.accumulate) * config.accumulate
    # A very short run is profiled for more steps than it has.
    steps = None if config.max_steps is None else max(config.max_steps, untimed + timed)
    single_device = replace(config, devices=1, num_nodes=1, strategy="auto", val_every_steps=None, max_steps=steps)
    profiler = _StepProfiler(untimed, timed)
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        trainer = make_trainer(single_device, Path(folder), loggers=(), has_validation=False, log_every=1)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, _EXCLUDED_CALLBACKS)] + [
            profiler
        ]
        with suppress(_ProfileComplete):
            trainer.fit(module, train_dataloaders=_RepeatedBatches(batches, max(steps_per_epoch, untimed + timed)))
    (throughput,) = [callback for callback in callbacks if isinstance(callback, Throughput)]
    speed = throughput.average() or throughput.speed
    rate = profiler.pairs / profiler.seconds
    return StepProfile(
        batches=profiler.timed,
        seconds_first=profiler.seconds_first,
        rate=rate,
        # `Throughput` has a clock of its own, whose average may include the untimed second step.
        mfu=speed.mfu * rate / speed.rate if speed.mfu is not None else None,
        peak=f"{speed.peak}, {speed.peak.source}" if speed.peak is not None else "",
        first_loss=profiler.first_loss,
        footprint=profiler.footprint(),
    )


class _ProfileComplete(Exception):  # noqa: N818 – not an error: it ends the profiled run
    """Exception that ends the profiled run once enough batches are timed."""


class _RepeatedBatches:
    """Loader that repeats the batches up to the length of the run's epoch."""

    def __init__(self, batches: list[Batch], length: int) -> None:
        self._batches = batches
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self._length):
            yield self._batches[index % len(self._batches)]


class _StepProfiler(Callback):
    """Callback that times steps, synchronized with the device, and measures their memory.

    Args:
        untimed: number of first batches not to time, in which kernels are selected and optimiser states allocated.
        num: number of batches to time after those; fewer if they are slow.
    """

    def __init__(self, untimed: int, num: int) -> None:
        self._untimed = untimed
        self._num = num
        self._count = 0
        self._started = 0.0
        self._weights = self._gradients = self._states = self._before = self._peak = 0
        self._is_gpu = False
        self.timed = 0
        self.pairs = 0
        self.seconds = 0.0
        self.seconds_first = 0.0
        self.first_loss = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        device = trainer.strategy.root_device
        self._is_gpu = device.type == "cuda"
        if self._count == 0:
            self._weights = sum(_bytes(parameter) for parameter in pl_module.parameters())
            reset_peak_memory(device)
            self._before = peak_memory(device)
        elif self._count == self._untimed:
            reset_peak_memory(device)
        self._started = _now(device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        device = trainer.strategy.root_device
        seconds = _now(device) - self._started
        self._count += 1
        self._gradients = max(
            self._gradients, sum(_bytes(p.grad) for p in pl_module.parameters() if p.grad is not None)
        )
        if self._count == 1:
            self.seconds_first = seconds
            self.first_loss = float(trainer.callback_metrics["train/loss"])
        if self._count <= self._untimed:
            return
        self.timed += 1
        self.pairs += len(batch[0])
        self.seconds += seconds
        if self.timed >= self._num or self.seconds > _MAX_SECONDS:
            self._peak = peak_memory(device)
            self._states = sum(_state_bytes(optimizer) for optimizer in trainer.optimizers)
            raise _ProfileComplete

    def footprint(self) -> Footprint:
        """Return the memory of the steps."""
        program = 0 if self._is_gpu else max(0, self._before - self._weights)
        other = self._weights + self._gradients + self._states + program
        return Footprint(self._weights, self._gradients, self._states, max(0, self._peak - other), program)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _bytes(tensor: Tensor) -> int:
    """Return the size of a tensor, or of the inner tensors of a tensor subclass such as torchao's quantized states."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(_bytes(value) for value in states if isinstance(value, Tensor))
