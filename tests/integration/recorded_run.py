"""A real run that remembers every batch it was given: `python -m tests.integration.recorded_run WANTED.json`."""

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
from lakeclip.training.checks import checked_sizes
from lakeclip.training.parts import make_datamodule, make_module


class Recorder(Callback):
    """Writes what each process got, by step, and a checkpoint at the end."""

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
    wanted = json.loads(Path(sys.argv[1]).read_text())
    config = config_from_dict(wanted["config"], where="the test")
    sizes = checked_sizes(config)
    data = make_datamodule(config.data, sizes.image_resolution, Tokenizer())
    module = make_module(config, sizes)
    module.accumulate = data.batches_per_step = config.trainer.accumulate
    trainer = L.Trainer(
        accelerator="cpu",
        devices=wanted["devices"],
        strategy="ddp" if wanted["devices"] > 1 else "auto",
        max_steps=config.trainer.max_steps,
        max_epochs=config.trainer.max_epochs,
        limit_val_batches=0,
        callbacks=[Recorder(Path(wanted["folder"]))],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=wanted["resume"], weights_only=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
