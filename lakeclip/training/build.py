"""Build the module and the data module of a run from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning as L
from torch import nn

from lakeclip.config.schema import DataConfig, FinetuneConfig, ModelConfig, TrainConfig
from lakeclip.data.datamodule import PairDataModule
from lakeclip.lake.pairs import open_pairs
from lakeclip.models.activation_checkpointing import set_recompute
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.models.pretrained import TowersConfig
from lakeclip.models.vision_transformer import VisionTransformer
from lakeclip.text.huggingface import FixedLengthTokenizer, HuggingFaceTokenizer
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training.checks import check_finetune
from lakeclip.training.finetune import FinetuneModule
from lakeclip.training.guard import Guard
from lakeclip.training.module import CLIPWrapper
from lakeclip.training.pretrained import load_clip, load_image_tower_by_name, load_text_tower_by_name
from lakeclip.types import Tokenize


def build_module(config: TrainConfig, sizes: ModelConfig, folder: Path | None = None) -> CLIPWrapper:
    """Build what `train` trains, with initial weights from the configuration's seed.

    Args:
        folder: the run's folder, where skipped steps are listed; None for a dry run.
    """
    L.seed_everything(config.data.seed, verbose=False)
    module = CLIPWrapper(
        config.model,
        sizes,
        config.trainer.minibatch_size,
        optimizer=config.optimizer,
        loss=config.loss,
        accumulate=config.trainer.accumulate,
        guard=Guard(config.trainer.max_skipped, folder),
        run_config=config,
    )
    assert isinstance(module.model, CLIP)
    visual: nn.Module = module.model.visual
    if isinstance(visual, VisionTransformer):
        visual.patch_dropout = config.trainer.patch_dropout
    set_recompute(module.model, config.trainer.checkpointing)
    if config.trainer.compile:
        # The image tower's shapes are constant; the text tower's change with each batch's captions.
        visual.compile()
    return module


@dataclass(frozen=True)
class FinetuneStart:
    """A pretrained model to fine-tune, and what its inputs need.

    Attributes:
        name: the model's name.
        tokenize: the tokenizer of its text tower.
        image_size: side of the images in pixels.
        towers: the names by which two towers can be loaded again; None for a whole CLIP.
    """

    model: CLIP | DualEncoder
    name: str
    tokenize: Tokenize
    image_size: int
    towers: TowersConfig | None = None

    @property
    def model_config(self) -> ModelConfig | None:
        """Settings of a whole CLIP; None for two towers."""
        return self.model.config if isinstance(self.model, CLIP) else None


def load_start(config: FinetuneConfig) -> FinetuneStart:
    """Check a configuration of a fine-tuning, seed PyTorch with its seed, and load the model it starts from.

    Raises:
        LakeclipError: a model, a tower or a device is unavailable, or settings do not fit together.
    """
    check_finetune(config)
    # Before the towers are made: one from scratch has random weights, as heads and LoRA's matrices have.
    L.seed_everything(config.data.seed, verbose=False)
    return _load_clip(config) if config.start else _load_towers(config)


def build_finetune_module(config: FinetuneConfig, start: FinetuneStart, folder: Path | None = None) -> FinetuneModule:
    """Build what `finetune` trains.

    Args:
        folder: the run's folder, where skipped steps are listed; None for a dry run.
    """
    module = FinetuneModule(
        start.model,
        model_name=start.name,
        minibatch_size=config.trainer.minibatch_size,
        optimizer=config.optimizer,
        teacher=config.teacher,
        keep=config.keep,
        accumulate=config.trainer.accumulate,
        guard=Guard(config.trainer.max_skipped, folder),
        run_config=config,
        towers=start.towers,
    )
    if config.start:
        set_recompute(module.model, config.trainer.checkpointing)
    return module


def _load_clip(config: FinetuneConfig) -> FinetuneStart:
    assert config.start is not None
    loaded = load_clip(config.start, config.data.image_size, config.context_length)
    return FinetuneStart(loaded.model, loaded.name, loaded.tokenize, loaded.model.config.image_resolution)


def _load_towers(config: FinetuneConfig) -> FinetuneStart:
    text, image = load_text_tower_by_name(config.text_encoder), load_image_tower_by_name(config.image_encoder)
    if text.tokenizer is None:
        tokenize: Tokenizer | HuggingFaceTokenizer = Tokenizer(text.context_length)
    elif text.context_length:
        tokenize = FixedLengthTokenizer(text.tokenizer, text.context_length)
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
    return FinetuneStart(model, f"{config.image_encoder} + {config.text_encoder}", tokenize, size, towers)


def build_datamodule(
    data: DataConfig,
    image_size: int,
    tokenize: Tokenize,
    *,
    model: ModelConfig | None = None,
    batches_per_step: int = 1,
    token: str | None = None,
    version: str | None = None,
) -> PairDataModule:
    """Build the data module of a configuration: open its sources and find their columns, but read no rows.

    Args:
        model: settings of the model, which say how images are brought to size. Default: as OpenAI's.
        batches_per_step: batches whose gradients are accumulated.
        version: version of the training data; the newest by default.
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
        batches_per_step=batches_per_step,
        resize_mode=model.resize_mode if model else "shortest",
        interpolation=model.interpolation if model else "bicubic",
    )
