"""How fast a run is and what holds it up: samples a second, waiting for data, utilisation, memory."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lakeclip.models.clip import CLIP
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.planning.cost import PairFlops, Peak, Tokens, count_tokens, peak
from lakeclip.training.watching.memory import peak_memory

#: Steady enough to read, and so rare that reading numbers off a GPU costs nothing.
_WINDOW_SECONDS = 1.0


@dataclass(frozen=True)
class Speed:
    """How fast training was over some time, validation and checkpoints left out.

    Attributes:
        rate: pairs a second over all devices.
        data_wait: share of the time in which the device had no batch to work on, 0…1.
        mfu: share of `peak` that the model's own FLOPs made use of (see `cost`); None where they are not known.
        peak: of one device; None as `mfu`.
        memory: bytes at most so far: allocated on the GPU, or else of this process, loading processes not counted.
    """

    rate: float = 0.0
    data_wait: float = 0.0
    mfu: float | None = None
    peak: Peak | None = None
    memory: int = 0

    def __str__(self) -> str:
        parts = [f"{self.rate:,.0f} samples/s", f"{self.data_wait:.0%} waiting"]
        if self.mfu is not None and self.peak is not None:
            parts.append(f"{self.mfu:.0%} of {self.peak}")
        return " · ".join([*parts, f"{self.memory / 1e9:.1f} GB"])


class Throughput(Callback):
    """Logs `train/samples_per_second`, `train/data_wait`, `train/mfu` and `train/memory_gb`, each over about a second.

    Beside them stands `train/seconds`, the wall-clock time of the whole run so far (`ContrastiveModule.seconds`).

    Let it stand after the callbacks whose work is to count as training's.

    Args:
        patch_dropout: share of the patches that the model leaves out: no work, so not counted.
    """

    def __init__(self, patch_dropout: float = 0.0) -> None:
        self.speed = Speed()
        self._patch_dropout = patch_dropout
        self._flops: PairFlops | None = None
        self._peak: Peak | None = None
        self._gaps: _Gaps = _HostGaps()
        self._mark: float | None = None
        self._first_step = True
        self._window = _Work()
        self._whole = _Work()
        self._tokens: Tensor | None = None
        self._captions = 0

    # ── the clock ─────────────────────────────────────────────────────────────────────────────────────────────────

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self._gaps = _DeviceGaps()
        model = getattr(pl_module, "model", None)
        if isinstance(model, CLIP):
            self._flops = PairFlops(model.config, self._patch_dropout)
            # Counted and measured now, while no loading process competes for the CPU.
            self._flops.images(0, model.config.image_resolution)
            self._flops.texts(Tokens(0, 0, 0))
            self._peak = peak(device, _dtype(trainer.precision))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()
        self._gaps.open()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._mark is None:
            self._mark = time.perf_counter()
        else:
            self._gaps.close()
        if self._flops is not None:
            counts = count_tokens(batch[1])
            self._tokens = counts if self._tokens is None else self._tokens.add_(counts)
            self._captions += len(batch[1])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        assert self._mark is not None
        work = self._window
        work.seconds += now - self._mark
        work.pairs += len(batch[0]) * trainer.world_size
        if self._flops is not None:
            work.flops += self._flops.images(len(batch[0]), batch[0].shape[-1])
        self._mark = now
        if work.seconds >= _WINDOW_SECONDS or self._first_step:
            self._close_window(trainer)
        # Logging costs as much as all the rest of this, so only where Lightning writes it down.
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0:
            self._log(pl_module)
        self._gaps.open()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close_window(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close_window(trainer)

    def pause(self) -> None:
        """Let the time until the next batch count as neither training nor waiting: something else is done in it."""
        self._mark = None
        self._gaps.drop()

    def resume(self) -> None:
        """Count again from here, where a step begins."""
        self._mark = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.pause()

    # ── the figures ───────────────────────────────────────────────────────────────────────────────────────────────

    def average(self) -> Speed | None:
        """Over the whole run but for its first step, in which kernels are chosen; None where there were no others."""
        return self._speed(self._whole, self.speed.memory) if self._whole.pairs else None

    def _close_window(self, trainer: L.Trainer) -> None:
        device, work = trainer.strategy.root_device, self._window
        if not work.pairs:
            return
        work.waited = self._gaps.take()
        if self._flops is not None and self._tokens is not None:
            tokens, squares = self._tokens.tolist()
            work.flops += self._flops.texts(Tokens(self._captions, tokens, squares))
            self._tokens, self._captions = None, 0
        self.speed = self._speed(work, peak_memory(device))
        if not self._first_step:
            self._whole = self._whole.plus(work)
        self._first_step = False
        self._window = _Work()

    def _speed(self, work: _Work, memory: int) -> Speed:
        seconds = max(work.seconds, 1e-9)
        mfu = work.flops / seconds / self._peak.flops if self._peak is not None else None
        return Speed(work.pairs / seconds, min(1.0, work.waited / seconds), mfu, self._peak, memory)

    def _log(self, pl_module: L.LightningModule) -> None:
        figures = {
            "train/samples_per_second": self.speed.rate,
            "train/data_wait": self.speed.data_wait,
            "train/memory_gb": self.speed.memory / 1e9,
        }
        if isinstance(pl_module, ContrastiveModule):
            figures["train/seconds"] = pl_module.seconds
        if self.speed.mfu is not None:
            figures["train/mfu"] = self.speed.mfu
        pl_module.log_dict(figures, rank_zero_only=True)


@dataclass
class _Work:
    """What was done in some time: seconds, of which waited; pairs of all devices; FLOPs of this one."""

    seconds: float = 0.0
    waited: float = 0.0
    pairs: int = 0
    flops: float = 0.0

    def plus(self, other: _Work) -> _Work:
        return _Work(
            self.seconds + other.seconds,
            self.waited + other.waited,
            self.pairs + other.pairs,
            self.flops + other.flops,
        )


class _Gaps(Protocol):
    """Times between the end of a step and the batch of the next."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def drop(self) -> None: ...
    def take(self) -> float:
        """Seconds in the gaps since the last call."""


class _HostGaps:
    """By the clock: the step is done when Python says so."""

    def __init__(self) -> None:
        self._opened: float | None = None
        self._seconds = 0.0

    def open(self) -> None:
        self._opened = time.perf_counter()

    def close(self) -> None:
        if self._opened is not None:
            self._seconds += time.perf_counter() - self._opened
            self._opened = None

    def drop(self) -> None:
        self._opened = None

    def take(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _DeviceGaps:
    """By the GPU, which works through what Python has handed it, and waits only where that has run out."""

    def __init__(self) -> None:
        self._opened: torch.cuda.Event | None = None
        self._closed: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def open(self) -> None:
        self._opened = self._now()

    def close(self) -> None:
        if self._opened is not None:
            self._closed.append((self._opened, self._now()))
            self._opened = None

    def drop(self) -> None:
        self._opened = None

    def take(self) -> float:
        seconds = 0.0
        while self._closed and self._closed[0][1].query():  # type: ignore[no-untyped-call]
            opened, closed = self._closed.popleft()
            seconds += opened.elapsed_time(closed) / 1e3
        return seconds

    @staticmethod
    def _now() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _dtype(precision: str | None) -> torch.dtype:
    """The arithmetic of a Lightning precision, such as 32-true and bf16-mixed."""
    if precision is not None and precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision is not None and precision.startswith("16") else torch.float32
