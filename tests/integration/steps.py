"""Things that happen at a certain step of a run, instead of after a certain time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest

#: Environment variables of a process that `tests.preloaded` starts. "STEP:SIGNAL": it sends itself a signal after that
#: step. "STEP:FOLDER": it makes a file in the folder after that step, and waits for `release`.
SIGNAL_AT, HOLD_AT = "LAKECLIP_TEST_SIGNAL_AT", "LAKECLIP_TEST_HOLD_AT"


class _Once(L.Callback):
    """Callback that calls a function after one step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step = step
        self.action = action

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            self.action()


@contextlib.contextmanager
def after_step(step: int, action: Callable[[], object]) -> Iterator[None]:
    """Call a function after a step of the runs of this process, in the thread that trains."""
    fit = L.Trainer.fit

    def fit_with_callback(trainer: L.Trainer, *arguments: Any, **named: Any) -> None:
        trainer.callbacks.append(_Once(step, action))  # type: ignore[attr-defined]
        fit(trainer, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(L.Trainer, "fit", fit_with_callback)
        yield


@contextlib.contextmanager
def as_told(environment: Mapping[str, str]) -> Iterator[None]:
    """Do what `SIGNAL_AT` and `HOLD_AT` say."""
    with contextlib.ExitStack() as stack:
        if told := environment.get(SIGNAL_AT):
            step, _, number = told.partition(":")
            stack.enter_context(after_step(int(step), lambda: os.kill(os.getpid(), int(number))))
        if told := environment.get(HOLD_AT):
            step, _, folder = told.partition(":")
            stack.enter_context(after_step(int(step), lambda: _hold(Path(folder))))
        yield


def _hold(folder: Path) -> None:
    (folder / "held").touch()
    while not (folder / "released").exists():
        time.sleep(0.005)


def wait_until_held(folder: Path, is_running: Callable[[], bool]) -> None:
    """Wait until the process with `HOLD_AT` has reached its step."""
    while not (folder / "held").exists():
        assert is_running(), "the run ended before the step at which it was to wait"
        time.sleep(0.005)


def release(folder: Path) -> None:
    """Let the process with `HOLD_AT` continue."""
    (folder / "released").touch()
