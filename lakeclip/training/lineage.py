"""Lineage of a module in training, written into its checkpoints (layout: `provenance/lineage.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import lightning as L

from lakeclip.config.schema import FinetuneConfig, ModelConfig, TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.lake.rows import RowSource
from lakeclip.models.pretrained import OwnTowersConfig, TowersConfig
from lakeclip.provenance.environment import code_version, describe_environment
from lakeclip.provenance.lineage import make_lineage
from lakeclip.provenance.run_segments import lineage_differences
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.types import Tokenize


def lineage_of(
    trainer: L.Trainer,
    *,
    model_name: str,
    model_config: ModelConfig | TowersConfig | OwnTowersConfig,
    config: TrainConfig | FinetuneConfig,
    samples_seen: int,
    seconds: float,
    schedule: Callable[[], tuple[int, int] | None],
    start: str | None = None,
    past: dict[str, Any] | None = None,
    tokenizer: Tokenize | None = None,
) -> dict[str, Any]:
    """Return the lineage of a module in training: its model, tokenizer, data, configuration and position.

    Args:
        samples_seen: pairs over all processes so far.
        seconds: of training so far.
        schedule: returns the steps of warm-up and of the whole run, or None if its length is unknown; called only if
            the data module is lakeclip's.
        start: sha256 of the weights that a fine-tuning started from.
        past: the lineage of the checkpoint that the run resumed from.
        tokenizer: the tokenizer of a dataloader other than lakeclip's.
    """
    datamodule = getattr(trainer, "datamodule", None)
    data = datamodule if isinstance(datamodule, PairDataModule) else None
    used = data.tokenize if data is not None else tokenizer
    position = {}
    if data is not None:
        now = data.data_position
        position = {"data_epoch": now.epoch, "position": now.position}
        if (planned := schedule()) is not None:
            position |= {"total_steps": planned[1], "warmup_steps": planned[0]}
    current = make_lineage(
        model_name=model_name,
        model_config=model_config,
        tokenizer=used if isinstance(used, (Tokenizer, HuggingFaceTokenizer)) else None,
        data=_data(data),
        config=config,
        progress={
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "samples_seen": samples_seen,
            "seconds": seconds,
            "world_size": trainer.world_size,
            **position,
        },
    )
    current |= {
        "code": code_version(),
        "environment": describe_environment(trainer.strategy.root_device, gpus=_gpus(trainer)),
    }
    if (start := start or (past or {}).get("start")) is not None:
        current["start"] = start
    if data is not None:
        current["parts"] = _segments(trainer, data, current, past)
    return current


def _segments(
    trainer: L.Trainer, data: PairDataModule, current: dict[str, Any], past: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the segments of the run up to the current one."""
    segment = {
        **dataclasses.asdict(data.start_position),
        "batch_size": data.batch_size,
        "world_size": trainer.world_size,
        "batches_per_step": data.batches_per_step,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        **{name: current["progress"].get(name) for name in ("total_steps", "warmup_steps")},
    }
    if past is None:
        return [{**segment, "changed": {}}]
    before = past.get("parts", [])
    changed = lineage_differences(past, current)
    if before and before[-1]["world_size"] != trainer.world_size:
        changed["world_size"] = [before[-1]["world_size"], trainer.world_size]
    return [*before, {**segment, "changed": changed}] if changed or not before else before


def _data(ours: PairDataModule | None) -> dict[str, Any]:
    if ours is None:  # a user's own dataloader
        return {"path": "", "version": "", "query": None, "rows": 0}
    source = ours.source
    return {
        "path": source.path,
        "version": source.version,
        "query": source.query,
        "rows": len(source),
        **_account(ours),
        **_sources(ours),
    }


def _sources(data: PairDataModule) -> dict[str, Any]:
    """Return each lake or folder as it can be opened again, and a fingerprint of the order of its rows."""
    shares = data.source.shares
    validation = [_source(part) for part in data.val_source.parts] if data.val_source is not None else None
    return {
        "plan": data.train_stream.plan.fingerprint,
        "sources": [
            {**_source(part), "share": share / sum(shares)}
            for part, share in zip(data.source.parts, shares, strict=True)
        ],
        "validation": validation[0] if validation else None,
    }


def _source(part: RowSource) -> dict[str, Any]:
    lake = {"query": part.query, "total_rows": part.num_total_rows} if part.is_queryable else {}
    return {"path": part.path, "version": part.version, "rows": len(part), **lake}


def _account(data: PairDataModule) -> dict[str, int]:
    """Return the numbers of rows before the query, for training and for validation."""
    lakes = {"total_rows": data.source.num_total_rows} if data.source.is_queryable else {}
    return {**lakes, "train_rows": data.num_train_rows, "val_rows": data.num_val_rows}


def _gpus(trainer: L.Trainer) -> list[int] | None:
    return list(trainer.device_ids) if trainer.strategy.root_device.type == "cuda" else None
