"""Checks of a configuration before anything is built: missing devices, and settings that exclude each other."""

from __future__ import annotations

from dataclasses import replace

import torch

from lakeclip.config.command import format_command
from lakeclip.config.schema import (
    EvaluationConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from lakeclip.data.image_size_schedule import parse_image_size_schedule
from lakeclip.errors import ConfigError, DeviceError, ModelError
from lakeclip.evaluation.registry import EVALUATIONS
from lakeclip.losses.registry import find_loss
from lakeclip.models.clip import size_problems
from lakeclip.models.zoo import model_config
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training import sharding
from lakeclip.training.optim.eight_bit import require_torchao

#: Limit on --context-length, in tokens.
MAX_CONTEXT = 4_096


def resolve_model_config(config: TrainConfig) -> ModelConfig:
    """Return the model's config, at the requested image size."""
    sizes = model_config(config.model, config.model_config)
    return replace(sizes, image_resolution=config.data.image_size) if config.data.image_size else sizes


def check_train(config: TrainConfig, known: ModelConfig | None = None) -> ModelConfig:
    """Check a training configuration, and return its model's config.

    Args:
        known: the model's config; by default it is looked up by `config.model`.

    Raises:
        ModelError: the model is unknown, or its vocabulary is too small.
        DeviceError: see `check_devices`.
        ConfigError: settings exclude each other, or do not fit the model.
    """
    sizes = known or resolve_model_config(config)
    if problems := size_problems(sizes):
        raise ModelError(
            f"{config.model} cannot have these sizes",
            found="; ".join(problems),
            next_step="another --image-size, or none for the model's own" if config.data.image_size else "",
        )
    if sizes.vocab_size < Tokenizer.vocab_size:
        raise ModelError(
            f"the vocabulary of {config.model} is too small for the tokenizer",
            found=f"vocab_size {sizes.vocab_size}",
            allowed=f"{Tokenizer.vocab_size} or more, the number of ids of CLIP's tokenizer",
        )
    find_loss(config.loss.objective, label_smoothing=config.loss.label_smoothing)
    check_devices(config)
    if config.optimizer.states == "8bit":
        require_torchao()
    check_combinations(config.optimizer, config.trainer)
    check_evaluations(config.evaluation)
    if config.trainer.patch_dropout and sizes.vision_patch_size is None:
        raise ConfigError(
            f"patch_dropout {config.trainer.patch_dropout} was requested, but {config.model} has no patches",
            allowed="0, or a vision transformer",
        )
    stride = sizes.vision_patch_size or 32
    for side, _ in parse_image_size_schedule(config.data.small_images, sizes.image_resolution).stages:
        if side % stride:
            raise ConfigError(
                f"{config.model} cannot process images of {side} pixels",
                found=f"small_images {config.data.small_images!r}",
                allowed=f"multiples of {stride} below {sizes.image_resolution}",
            )
    return sizes


def check_finetune(config: FinetuneConfig) -> None:
    """Check a fine-tuning configuration before anything is loaded.

    Raises:
        DeviceError: see `check_devices`.
        ConfigError: settings exclude each other, or do not work with towers from other libraries.
    """
    check_devices(config)
    if config.optimizer.states == "8bit":
        require_torchao()
    check_combinations(config.optimizer, config.trainer)
    check_evaluations(config.evaluation)
    for name in ("checkpointing", "patch_dropout", "compile"):
        is_supported = name == "checkpointing" and config.start is not None
        if getattr(config.trainer, name) != getattr(TrainerConfig, name) and not is_supported:
            raise ConfigError(
                f"{name} was requested, but fine-tuning trains towers from other libraries, which do not support it",
                found=f"{name} {getattr(config.trainer, name)}",
                allowed="lakeclip train, or the library's own option, set before the tower is passed in",
            )
    if config.context_length is not None:
        _check_context(config)
    if config.trainer.strategy == sharding.STRATEGY:
        raise ConfigError(
            "fine-tuning does not support --strategy fsdp2",
            found="towers of unknown structure, and a teacher that needs unsharded weights",
            allowed="--strategy ddp",
        )
    if config.data.small_images:
        raise ConfigError(
            "--small-images was requested, but pretrained towers work at one image size",
            allowed="--image-size, for the whole run",
        )
    has_validation = config.data.val_lake or config.data.val_fraction
    if config.keep.keep_lake and not has_validation:
        raise ConfigError(
            "--keep-lake compares the old task with the new one, but no rows are held out for the new one",
            next_step="--val-fraction 0.02, or --val-lake LAKE",
        )


def _check_context(config: FinetuneConfig) -> None:
    if config.start is None:
        raise ConfigError(
            "--context-length was requested, but towers of other libraries have a context of their own",
            allowed="--context-length with --from, for a whole CLIP",
        )
    if not 8 <= (config.context_length or 0) <= MAX_CONTEXT:
        raise ConfigError(
            "the context of a text tower is a number of tokens",
            found=f"--context-length {config.context_length}",
            allowed=f"8 to {MAX_CONTEXT}; 77 is the usual one, and 248 that of Long-CLIP",
        )


def check_combinations(optimizer: OptimizerConfig, trainer: TrainerConfig) -> None:
    """Check that the optimiser's and the trainer's settings can be combined.

    Raises:
        ConfigError: averaged or bfloat16 weights under FSDP2, or a compiled model with activation checkpointing.
    """
    if optimizer.ema_decay is not None and trainer.strategy == sharding.STRATEGY:
        raise ConfigError(
            "an average of the weights (ema_decay) cannot be combined with --strategy fsdp2",
            found="sharded weights: no device holds all of them",
            allowed="--strategy ddp with ema_decay, or fsdp2 without",
        )
    if optimizer.text_weights != "32" and trainer.strategy == sharding.STRATEGY:
        raise ConfigError(
            "text weights in bf16 cannot be combined with --strategy fsdp2",
            found="towers of two dtypes, which FSDP2 would shard together",
            allowed="--strategy ddp with bf16 text weights, or fsdp2 without",
        )
    if trainer.compile and trainer.checkpointing != "off":
        raise ConfigError(
            "a compiled model cannot be combined with activation checkpointing",
            found=f"checkpointing {trainer.checkpointing}",
            allowed="one of the two: the compiler itself decides what to recompute",
        )


def check_evaluations(config: EvaluationConfig) -> None:
    """Check that the requested evaluations are registered.

    Raises:
        ConfigError: one of them is not.
    """
    if config.eval_lake is not None:
        EVALUATIONS.select(config.eval_scores)


def check_devices(config: TrainConfig | FinetuneConfig) -> None:
    """Check that this machine has the requested devices; the error shows the command that would work here.

    Raises:
        DeviceError: a GPU, a number of GPUs, or float16 arithmetic is not available.
    """
    trainer, num_gpus = config.trainer, torch.cuda.device_count()
    available = f"{num_gpus} GPU{'s' * (num_gpus != 1)}" if num_gpus else "no GPU"
    if trainer.accelerator == "gpu" and not num_gpus and not torch.backends.mps.is_available():
        what = f"{trainer.devices or 1} GPU(s) requested (accelerator gpu), but this machine has none"
        feasible = replace(trainer, accelerator="cpu", devices=None, strategy="auto", precision="32")
    elif trainer.accelerator == "gpu" and num_gpus and (trainer.devices or 0) > num_gpus:
        what, feasible = f"{trainer.devices} GPUs requested", replace(trainer, devices=num_gpus)
    elif trainer.precision == "16" and not num_gpus:
        what, feasible = "float16 requested (precision 16), which needs a GPU", replace(trainer, precision="auto")
    else:
        return
    raise DeviceError(what, found=available, next_step=format_command(replace(config, trainer=feasible)))
