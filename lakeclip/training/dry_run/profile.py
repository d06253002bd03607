"""A few real steps of a run that is only planned: what they take, what they hold, and what the loader alone can do."""

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
from lakeclip.training.callbacks import GracefulStop, RunProgress, ValidateAtEnd
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.recovery.saving import Saving
from lakeclip.training.trainer import make_trainer, quiet_lightning
from lakeclip.training.watching.memory import forget_peak, peak_memory
from lakeclip.training.watching.throughput import Throughput
from lakeclip.types import Batch

#: What a rehearsal leaves out: whatever keeps, shows or validates.
_NOT_REHEARSED = (ModelCheckpoint, Saving, RunProgress, GracefulStop, ValidateAtEnd)
_MOST_SECONDS = 30.0


@dataclass(frozen=True)
class Footprint:
    """Bytes that training holds on one device.

    Attributes:
        weights, gradients, states: of the parameters, the gradients and the optimiser, as they are after a step.
        activations: the rest of what a step adds at its peak.
        program: on a CPU, what the process holds before its first step besides the weights.
    """

    weights: int
    gradients: int
    states: int
    activations: int
    program: int = 0

    @property
    def total(self) -> int:
        """At the peak of a step."""
        return self.weights + self.gradients + self.states + self.activations + self.program


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps on one device showed.

    Attributes:
        batches: that were timed, after the first ones.
        seconds_first: of the first batch, in which kernels are chosen and compiled.
        rate: pairs a second of the step alone, its batches at hand.
        mfu, peak: of the step alone, in words of `Speed`; None where not known.
        first_loss: of the first batch.
    """

    batches: int
    seconds_first: float
    rate: float
    mfu: float | None
    peak: str
    first_loss: float
    footprint: Footprint


def load_a_few(datamodule: PairDataModule, num: int) -> tuple[list[Batch], float]:
    """The first batches of a run, at most `num`, and the pairs a second that the loader alone can make.

    Batches that the workers make at once arrive at once: the first round of them warms up and is not timed.
    """
    loader = datamodule.train_dataloader()
    workers = max(1, datamodule.num_workers)
    wanted = min(len(loader), workers * (1 + max(2, -(-num // workers))))
    untimed = min(workers, wanted - 1)
    kept: list[Batch] = []
    started = begun = time.perf_counter()
    count = 0
    for count, batch in enumerate(loader, start=1):
        if len(kept) < num:
            kept.append(batch)
        now = time.perf_counter()
        if count == untimed:
            begun = now
        if count == wanted or (now - started > _MOST_SECONDS and count > untimed):
            break
    return kept, (count - untimed) * datamodule.batch_size / max(time.perf_counter() - begun, 1e-9)


def rehearse(
    module: ContrastiveModule, batches: list[Batch], config: TrainerConfig, *, num: int, steps_per_epoch: int
) -> Rehearsal:
    """Train for a few batches as the run would, on its first device, and keep nothing.

    The step is the run's own: its trainer, callbacks, precision and schedule. The module's weights move.

    Args:
        batches: given to the step again and again.
        num: batches that are timed.
        steps_per_epoch: so that the schedule is the run's.

    Raises:
        torch.OutOfMemoryError: a step does not fit on the device.
    """
    torch.set_float32_matmul_precision("high")
    untimed = max(2, config.accumulate)
    timed = -(-num // config.accumulate) * config.accumulate
    # A run of a step or two is rehearsed for longer than it would last.
    steps = None if config.max_steps is None else max(config.max_steps, untimed + timed)
    alone = replace(config, devices=1, num_nodes=1, strategy="auto", val_every_steps=None, max_steps=steps)
    probe = _Probe(untimed, timed)
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        trainer = make_trainer(alone, Path(folder), loggers=(), has_validation=False, log_every=1)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [one for one in callbacks if not isinstance(one, _NOT_REHEARSED)] + [probe]
        with suppress(_Enough):
            trainer.fit(module, train_dataloaders=_Again(batches, max(steps_per_epoch, untimed + timed)))
    (throughput,) = [one for one in callbacks if isinstance(one, Throughput)]
    speed = throughput.average() or throughput.speed
    rate = probe.pairs / probe.seconds
    return Rehearsal(
        batches=probe.timed,
        seconds_first=probe.seconds_first,
        rate=rate,
        # The average has its own clock, which an untimed second step may have a part in.
        mfu=speed.mfu * rate / speed.rate if speed.mfu is not None else None,
        peak=f"{speed.peak}, {speed.peak.source}" if speed.peak is not None else "",
        first_loss=probe.first_loss,
        footprint=probe.footprint(),
    )


class _Enough(Exception):  # noqa: N818 – not an error: the rehearsal is over
    """The batches that were wanted have been trained on."""


class _Again:
    """Batches in turn, for as long as an epoch of the run has them."""

    def __init__(self, batches: list[Batch], length: int) -> None:
        self._batches = batches
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self._length):
            yield self._batches[index % len(self._batches)]


class _Probe(Callback):
    """Times steps, with all of each done on the device, and weighs what they leave.

    Args:
        untimed: batches to begin with, in which kernels are chosen and the optimiser makes its states.
        num: batches that are timed after those, fewer where they take long.
    """

    def __init__(self, untimed: int, num: int) -> None:
        self._untimed = untimed
        self._num = num
        self._count = 0
        self._mark = 0.0
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
            forget_peak(device)
            self._before = peak_memory(device)
        elif self._count == self._untimed:
            forget_peak(device)
        self._mark = _now(device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        device = trainer.strategy.root_device
        seconds = _now(device) - self._mark
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
        if self.timed >= self._num or self.seconds > _MOST_SECONDS:
            self._peak = peak_memory(device)
            self._states = sum(_state_bytes(optimizer) for optimizer in trainer.optimizers)
            raise _Enough

    def footprint(self) -> Footprint:
        """What the steps held."""
        program = 0 if self._is_gpu else max(0, self._before - self._weights)
        known = self._weights + self._gradients + self._states + program
        return Footprint(self._weights, self._gradients, self._states, max(0, self._peak - known), program)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _bytes(tensor: Tensor) -> int:
    """Of a tensor's values; of those that it is made of, where it is one in name only, as quantised states are."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(_bytes(value) for value in states if isinstance(value, Tensor))
