"""Throughput of a run: samples per second, share of time waiting for data, MFU, and peak memory."""

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
from lakeclip.training.flops import PairFlops, PeakFlops, TokenCounts, count_tokens, peak_flops
from lakeclip.training.memory import peak_memory
from lakeclip.training.module import ContrastiveModule

#: Long enough for steady figures, and for the synchronization with a GPU to cost nothing.
_WINDOW_SECONDS = 1.0


@dataclass(frozen=True)
class Speed:
    """Training speed over a period of time, without validation and checkpoints.

    Attributes:
        rate: pairs per second over all devices.
        data_wait: share of the time in which the device waited for a batch, 0…1.
        mfu: model FLOPs utilization, a share of `peak` (see `training.flops`); None for models that are not a `CLIP`.
        peak: peak FLOPs of one device; None like `mfu`.
        memory: peak memory so far in bytes: allocated on the GPU, or else of this process without loader workers.
    """

    rate: float = 0.0
    data_wait: float = 0.0
    mfu: float | None = None
    peak: PeakFlops | None = None
    memory: int = 0

    def __str__(self) -> str:
        parts = [f"{self.rate:,.0f} samples/s", f"{self.data_wait:.0%} waiting"]
        if self.mfu is not None and self.peak is not None:
            parts.append(f"{self.mfu:.0%} of {self.peak}")
        return " · ".join([*parts, f"{self.memory / 1e9:.1f} GB"])


class Throughput(Callback):
    """Callback that logs `train/samples_per_second`, `train/data_wait`, `train/mfu` and `train/memory_gb`.

    Each is measured over about a second. With them it logs `train/seconds`, the wall-clock time of the whole run so far
    (`ContrastiveModule.seconds`). Put it after the callbacks whose work counts as training time.

    Args:
        patch_dropout: share of the patches that the model drops; they cost no FLOPs.
    """

    def __init__(self, patch_dropout: float = 0.0) -> None:
        self.speed = Speed()
        self._patch_dropout = patch_dropout
        self._flops: PairFlops | None = None
        self._peak: PeakFlops | None = None
        self._wait_timer: _WaitTimer = _HostWaitTimer()
        self._counted_until: float | None = None
        self._is_first_step = True
        self._window = _Work()
        self._total = _Work()
        self._tokens: Tensor | None = None
        self._captions = 0

    # ── the clock ─────────────────────────────────────────────────────────────────────────────────────────────────

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self._wait_timer = _DeviceWaitTimer()
        model = getattr(pl_module, "model", None)
        if isinstance(model, CLIP):
            self._flops = PairFlops(model.config, self._patch_dropout)
            # Count and measure now, while no loader worker competes for the CPU.
            self._flops.images(0, model.config.image_resolution)
            self._flops.texts(TokenCounts(0, 0, 0))
            self._peak = peak_flops(device, _dtype(trainer.precision))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._counted_until = time.perf_counter()
        self._wait_timer.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._counted_until is None:
            self._counted_until = time.perf_counter()
        else:
            self._wait_timer.stop()
        if self._flops is not None:
            counts = count_tokens(batch[1])
            self._tokens = counts if self._tokens is None else self._tokens.add_(counts)
            self._captions += len(batch[1])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        assert self._counted_until is not None
        work = self._window
        work.seconds += now - self._counted_until
        work.pairs += len(batch[0]) * trainer.world_size
        if self._flops is not None:
            work.flops += self._flops.images(len(batch[0]), batch[0].shape[-1])
        self._counted_until = now
        if work.seconds >= _WINDOW_SECONDS or self._is_first_step:
            self._close_window(trainer)
        # Logging costs as much as the rest of this callback, so log only the steps that Lightning writes.
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0:
            self._log(pl_module)
        self._wait_timer.start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close_window(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close_window(trainer)

    def pause(self) -> None:
        """Exclude the time until the next batch, as neither training nor waiting."""
        self._counted_until = None
        self._wait_timer.cancel()

    def resume(self) -> None:
        """Count from now on, at the start of a step."""
        self._counted_until = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pause()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.pause()

    # ── the figures ───────────────────────────────────────────────────────────────────────────────────────────────

    def average(self) -> Speed | None:
        """Return the speed over all steps but the first, in which kernels are selected; None if there are no others."""
        return self._speed(self._total, self.speed.memory) if self._total.pairs else None

    def _close_window(self, trainer: L.Trainer) -> None:
        device, work = trainer.strategy.root_device, self._window
        if not work.pairs:
            return
        work.waited = self._wait_timer.pop_seconds()
        if self._flops is not None and self._tokens is not None:
            tokens, squares = self._tokens.tolist()
            work.flops += self._flops.texts(TokenCounts(self._captions, tokens, squares))
            self._tokens, self._captions = None, 0
        self.speed = self._speed(work, peak_memory(device))
        if not self._is_first_step:
            self._total = self._total.plus(work)
        self._is_first_step = False
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
    """Work of a period: its seconds and those spent waiting, pairs of all devices, FLOPs of this device."""

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


class _WaitTimer(Protocol):
    """Timer of the intervals from the end of a step to the arrival of the next batch."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def cancel(self) -> None: ...
    def pop_seconds(self) -> float:
        """Return the seconds waited since the last call."""


class _HostWaitTimer:
    """Timer on the host's clock, for devices that have finished a step when Python has."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def cancel(self) -> None:
        self._started = None

    def pop_seconds(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _DeviceWaitTimer:
    """Timer by CUDA events, as a GPU runs asynchronously and waits only when its queue is empty."""

    def __init__(self) -> None:
        self._started: torch.cuda.Event | None = None
        self._intervals: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self) -> None:
        self._started = self._record_event()

    def stop(self) -> None:
        if self._started is not None:
            self._intervals.append((self._started, self._record_event()))
            self._started = None

    def cancel(self) -> None:
        self._started = None

    def pop_seconds(self) -> float:
        seconds = 0.0
        while self._intervals and self._intervals[0][1].query():  # type: ignore[no-untyped-call]
            started, stopped = self._intervals.popleft()
            seconds += started.elapsed_time(stopped) / 1e3
        return seconds

    @staticmethod
    def _record_event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _dtype(precision: str | None) -> torch.dtype:
    """Return the dtype of matrix products under a Lightning precision such as 32-true or bf16-mixed."""
    if precision is not None and precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision is not None and precision.startswith("16") else torch.float32
