"""Where weights come from, written beside them: the fifth idea of the house (layout: `checkpoints/lineage.py`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lakeclip.checkpoints.lineage import lineage
from lakeclip.checkpoints.parts import differences
from lakeclip.config.schema import FinetuneConfig, FinetuneOptimizerConfig, TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.data.plan import parts_of
from lakeclip.lake.dataset import Lake
from lakeclip.lake.rows import RowSource
from lakeclip.lake.several import Lakes
from lakeclip.models.clip import CLIP
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.recovery.environment import code, environment

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
    found = lineage(
        model_name=module.model_name,
        model_config=config,
        tokenizer=tokenizer,
        data=_data(ours),
        config=module.run_config or _config_of(module),
        progress={
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "samples_seen": module.samples_seen,
            "seconds": module.seconds,
            "world_size": trainer.world_size,
            **(_place(module, ours) if ours else {}),
        },
    )
    found |= {"code": code(), "environment": environment(trainer)}
    if (start := module.start or (module.past or {}).get("start")) is not None:
        found["start"] = start
    if ours:
        found["parts"] = _parts(module, ours, found)
    return found


def _place(module: ContrastiveModule, data: PairDataModule) -> dict[str, int]:
    now = data.now
    return {"data_epoch": now.epoch, "position": now.position, "total_steps": module.total_steps}


def _parts(module: ContrastiveModule, data: PairDataModule, now: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of the run up to the one that goes on now."""
    trainer, began = module.trainer, data.began
    pace = {
        "batch_size": data.batch_size,
        "world_size": trainer.world_size,
        "batches_per_step": data.batches_per_step,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
    }
    own = {**dataclasses.asdict(began), **pace}
    if module.past is None:
        return [{**own, "changed": {}}]
    before = module.past.get("parts", [])
    changed = differences(module.past, now)
    if before and before[-1]["world_size"] != trainer.world_size:
        changed["world_size"] = [before[-1]["world_size"], trainer.world_size]
    return [*before, {**own, "changed": changed}] if changed or not before else before


def _data(ours: PairDataModule | None) -> dict[str, Any]:
    if ours is None:  # a user's own dataloader
        return {"path": "", "version": "", "query": None, "rows": 0}
    source = ours.source
    return {
        "path": source.path,
        "version": source.version,
        "query": source.query if isinstance(source, (Lake, Lakes)) else None,
        "rows": len(source),
        **_account(ours),
        **_sources(ours),
    }


def _sources(data: PairDataModule) -> dict[str, Any]:
    """Each lake or folder, such that it can be opened again as it was; and which order its rows are in."""
    shares = data.source.shares if isinstance(data.source, Lakes) else [1.0]
    validation = [_source(part) for part in parts_of(data.val_source)] if data.val_source is not None else None
    return {
        "plan": data.train_stream.plan.fingerprint,
        "sources": [
            {**_source(part), "share": share / sum(shares)}
            for part, share in zip(parts_of(data.source), shares, strict=True)
        ],
        "validation": validation[0] if validation else None,
    }


def _source(part: RowSource) -> dict[str, Any]:
    lake = {"query": part.query, "total_rows": part.total_rows} if isinstance(part, Lake) else {}
    return {"path": part.path, "version": part.version, "rows": len(part), **lake}


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
