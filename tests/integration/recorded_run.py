"""A training run that saves every batch it gets: `python -m tests.integration.recorded_run REQUEST.json`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lakeclip.config.load import config_from_dict
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.build import build_datamodule, build_module
from lakeclip.training.checks import check_train


class Recorder(Callback):
    """Callback that saves the batches of each process by step, and a checkpoint at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[int, list[Any]] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.setdefault(trainer.global_step + 1, []).append((batch[0].clone(), batch[1].clone(), batch.rows))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")
        torch.save(self.seen, self.folder / f"seen-{trainer.global_rank}.pt")


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    config = config_from_dict(request["config"], where="the test")
    sizes = check_train(config)
    steps = config.trainer.accumulate
    data = build_datamodule(config.data, sizes.image_resolution, Tokenizer(), batches_per_step=steps)
    module = build_module(config, sizes)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=request["devices"],
        strategy="ddp" if request["devices"] > 1 else "auto",
        max_steps=config.trainer.max_steps,
        max_epochs=config.trainer.max_epochs,
        limit_val_batches=0,
        callbacks=[Recorder(Path(request["folder"]))],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=request["resume"], weights_only=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
