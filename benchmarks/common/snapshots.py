"""Copies of a checkpoint that a training process keeps overwriting, made while it runs."""

from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

_POLL_SECONDS = 0.2


class Snapshot(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        step: optimiser steps that its weights have had.
        seconds: when it was written.
    """

    path: Path
    step: int
    seconds: float


class SnapshotWatcher:
    """Context manager that copies the first version of a checkpoint at or after each of the given steps.

    Args:
        checkpoint: the file, which need not exist yet.
        steps: ascending.
    """

    def __init__(self, checkpoint: Path, steps: Sequence[int]) -> None:
        self.snapshots: list[Snapshot] = []
        self._checkpoint = checkpoint
        self._steps = list(steps)
        self._last_mtime = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SnapshotWatcher:
        if self._steps:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._steps:
            self._thread.join()

    def _run(self) -> None:
        remaining = list(self._steps)
        while remaining and not self._stop.wait(_POLL_SECONDS):
            try:
                written = self._checkpoint.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if written == self._last_mtime or (step := _step(self._checkpoint)) is None:
                continue
            if step >= remaining[0]:
                copy = self._checkpoint.with_name(f"step{step}.ckpt")
                shutil.copyfile(self._checkpoint, copy)
                # The next version may have replaced the file while it was copied.
                if _step(copy) != step:
                    continue
                self.snapshots.append(Snapshot(copy, step, written / 1e9))
                remaining = [later for later in remaining if later > step]
            self._last_mtime = written


def _step(checkpoint: Path) -> int | None:
    """Return the step of a checkpoint; None if it is incomplete because it is being written."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError):
        return None
