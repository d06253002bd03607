"""Copies of a checkpoint that a training process overwrites as it goes on, made while it runs."""

from __future__ import annotations

import pickle
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

#: How often to look, in seconds.
_EVERY = 0.2


class Snapshot(NamedTuple):
    """A checkpoint of a run.

    Attributes:
        step: optimiser steps that its weights have had.
        at: when it was written.
    """

    path: Path
    step: int
    at: float


class Watch:
    """Keeps the first version of a checkpoint at or after each of some steps, while the `with` block runs.

    Args:
        checkpoint: the file, which need not exist yet.
        steps: wanted, in order.
    """

    def __init__(self, checkpoint: Path, steps: Sequence[int]) -> None:
        self.kept: list[Snapshot] = []
        self._checkpoint = checkpoint
        self._wanted = list(steps)
        self._seen = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        if self._wanted:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._wanted:
            self._thread.join()

    def _run(self) -> None:
        wanted = list(self._wanted)
        while wanted and not self._stop.wait(_EVERY):
            try:
                written = self._checkpoint.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if written == self._seen or (step := _step(self._checkpoint)) is None:
                continue
            if step >= wanted[0]:
                copy = self._checkpoint.with_name(f"step{step}.ckpt")
                shutil.copyfile(self._checkpoint, copy)
                # The next version may have taken its place meanwhile.
                if _step(copy) != step:
                    continue
                self.kept.append(Snapshot(copy, step, written / 1e9))
                wanted = [later for later in wanted if later > step]
            self._seen = written


def _step(checkpoint: Path) -> int | None:
    """Steps of a checkpoint; None if it is not whole, as it is being written."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError):
        return None
