"""The parts of a run, from its configuration: what is trained, and on what."""

from __future__ import annotations

from dataclasses import dataclass, replace

import lightning as L
from torch import nn

from lakeclip.checkpoints.native import weights_digest
from lakeclip.config.schema import DataConfig, FinetuneConfig, ModelConfig, TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.lake.pairs import open_pairs
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import TowersConfig
from lakeclip.models.recompute import set_recompute
from lakeclip.models.vision_transformer import VisionTransformer
from lakeclip.text.huggingface import HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.checks import check_finetune
from lakeclip.training.finetune import FinetuneModule
from lakeclip.training.module import CLIPWrapper
from lakeclip.training.starts import find_image_tower, find_text_tower, load_clip
from lakeclip.types import Tokenize


def make_module(config: TrainConfig, sizes: ModelConfig) -> CLIPWrapper:
    """What `train` trains, with the initial weights of the configuration's seed."""
    L.seed_everything(config.data.seed, verbose=False)
    module = CLIPWrapper(
        config.model, sizes, config.trainer.minibatch_size, optimizer=config.optimizer, loss=config.loss
    )
    module.run_config = replace(config, optimizer=module.optimizer_config)
    assert isinstance(module.model, CLIP)
    visual: nn.Module = module.model.visual
    if isinstance(visual, VisionTransformer):
        visual.patch_dropout = config.trainer.patch_dropout
    set_recompute(module.model, config.trainer.checkpointing)
    if config.trainer.compile:
        # Its shapes stay what they are; those of the text tower change with every batch's captions.
        visual.compile()
    return module


def finetune_parts(
    config: FinetuneConfig, *, token: str | None = None, version: str | None = None
) -> tuple[FinetuneModule, PairDataModule]:
    """What `finetune` trains, and on what; both are checked.

    Args:
        version: of what is trained on; the newest by default.

    Raises:
        LakeclipError: a model or a tower, the data or a device cannot be had, or settings do not go together.
    """
    check_finetune(config)
    # Before the towers: one from scratch has random weights, as heads and LoRA's additions have.
    L.seed_everything(config.data.seed, verbose=False)
    start = _whole(config) if config.start else _towers(config)
    datamodule = make_datamodule(config.data, start.image_size, start.tokenize, token=token, version=version)
    datamodule.setup("fit")
    module = FinetuneModule(
        start.model,
        model_name=start.name,
        minibatch_size=config.trainer.minibatch_size,
        optimizer=config.optimizer,
        teacher=config.teacher,
        keep=config.keep,
    )
    module.run_config = replace(config, optimizer=module.optimizer_config)
    module.towers = start.towers
    module.start = weights_digest(module.model.state_dict())
    if config.start:
        set_recompute(module.model, config.trainer.checkpointing)
    return module, datamodule


@dataclass(frozen=True)
class _Start:
    """What a fine-tuning starts from."""

    model: CLIP | DualEncoder
    name: str
    tokenize: Tokenizer | HuggingFaceTokenizer
    image_size: int
    towers: TowersConfig | None = None


def _whole(config: FinetuneConfig) -> _Start:
    assert config.start is not None
    loaded = load_clip(config.start, config.data.image_size)
    tokenizer = Tokenizer(loaded.model.config.context_length)
    return _Start(loaded.model, loaded.name, tokenizer, loaded.model.config.image_resolution)


def _towers(config: FinetuneConfig) -> _Start:
    text, image = find_text_tower(config.text_encoder), find_image_tower(config.image_encoder)
    if text.tokenizer is None:
        tokenize: Tokenizer | HuggingFaceTokenizer = Tokenizer(text.context_length)
    else:
        tokenize = HuggingFaceTokenizer(text.tokenizer)
    size = config.data.image_size or image.image_size
    model = DualEncoder(
        image.module,
        text.module,
        embed_dim=config.embed_dim,
        average_word_embeddings=config.average_word_embeddings,
        image_size=size,
        image_mean=image.mean,
        image_std=image.std,
    )
    towers = TowersConfig(
        image=image.origin,
        text=text.origin,
        embed_dim=model.embed_dim,
        image_dim=model.image_dim,
        average_word_embeddings=config.average_word_embeddings,
        image_resolution=size,
        image_mean=image.mean,
        image_std=image.std,
    )
    return _Start(model, f"{config.image_encoder} + {config.text_encoder}", tokenize, size, towers)


def make_datamodule(
    data: DataConfig, image_size: int, tokenize: Tokenize, *, token: str | None = None, version: str | None = None
) -> PairDataModule:
    """The data module for a configuration: sources opened, columns found, nothing read yet.

    Args:
        version: of what is trained on; the newest by default.
    """
    return PairDataModule(
        open_pairs(data, token=token, version=version),
        batch_size=data.batch_size,
        image_size=image_size,
        small_images=data.small_images,
        resize_ratio=data.resize_ratio,
        shuffle=data.shuffle,
        num_workers=data.num_workers,
        seed=data.seed,
        val_source=open_pairs(DataConfig(lake=data.val_lake, same_by=data.same_by), token=token)
        if data.val_lake
        else None,
        val_fraction=data.val_fraction,
        max_val_rows=data.max_val_rows,
        same_by=data.same_by,
        tokenize=tokenize,
    )
