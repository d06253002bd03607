"""Where weights come from, written beside them: the fifth idea of the house (layout: `checkpoints/native.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lakeclip.checkpoints.native import lineage
from lakeclip.config.schema import FinetuneConfig, FinetuneOptimizerConfig, TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.plan import parts_of
from lakeclip.lake.dataset import Lake
from lakeclip.lake.several import Lakes
from lakeclip.models.clip import CLIP
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lakeclip.training.module import ContrastiveModule


def of(module: ContrastiveModule) -> dict[str, Any] | None:
    """The lineage of a module in training: its model, tokenizer, data, configuration and position.

    None for towers that a user's own Python brought: nobody else can make them again.
    """
    config = module.model.config if isinstance(module.model, CLIP) else module.towers
    if config is None:
        return None
    trainer = module.trainer
    datamodule = getattr(trainer, "datamodule", None)
    ours = datamodule if isinstance(datamodule, PairDataModule) else None
    known = (Tokenizer, HuggingFaceTokenizer)
    tokenizer = ours.tokenize if ours and isinstance(ours.tokenize, known) else None
    return lineage(
        model_name=module.model_name,
        model_config=config,
        tokenizer=tokenizer,
        data_path=ours.source.path if ours else "",
        data_version=ours.source.version if ours else "",
        query=ours.source.query if ours and isinstance(ours.source, (Lake, Lakes)) else None,
        num_rows=len(ours.source) if ours else 0,
        account=_account(ours) if ours else None,
        config=module.run_config or _config_of(module),
        step=trainer.global_step,
        epoch=trainer.current_epoch,
        samples_seen=module.samples_seen,
        seconds=module.seconds,
        world_size=trainer.world_size,
    )


def _account(data: PairDataModule) -> dict[str, int]:
    """How many rows there were before the query, and how they were divided after it."""
    parts = [part for part in parts_of(data.source) if isinstance(part, Lake)]
    lakes = {"total_rows": sum(part.total_rows for part in parts)} if parts else {}
    return {**lakes, "train_rows": data.num_train_rows, "val_rows": data.num_val_rows}


def _config_of(module: ContrastiveModule) -> TrainConfig | FinetuneConfig:
    """What is known of a run that a user's own script started."""
    if isinstance(module.optimizer_config, FinetuneOptimizerConfig):
        return FinetuneConfig(optimizer=module.optimizer_config)
    return TrainConfig(model=module.model_name, loss=module.loss_config, optimizer=module.optimizer_config)
