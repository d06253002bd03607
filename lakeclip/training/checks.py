"""What cannot be had, or does not go together, said before anything is built."""

from __future__ import annotations

from dataclasses import replace

import torch

from lakeclip.config.command import command
from lakeclip.config.schema import FinetuneConfig, ModelConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.data.sizes import parse_sizes
from lakeclip.errors import ConfigError, DeviceError, ModelError
from lakeclip.models.zoo import model_config
from lakeclip.text.tokenizer import Tokenizer
from lakeclip.training import sharding
from lakeclip.training.adam.eight_bit import require_torchao


def sized_model(config: TrainConfig) -> ModelConfig:
    """The model's sizes, at the image size that was asked for."""
    sizes = model_config(config.model, config.model_config)
    return replace(sizes, image_resolution=config.data.image_size) if config.data.image_size else sizes


def checked_sizes(config: TrainConfig, known: ModelConfig | None = None) -> ModelConfig:
    """The model's sizes, once what was asked for is known to be possible here.

    Args:
        known: the sizes, where they need not be looked up by the model's name.

    Raises:
        ModelError: the model is unknown, or its vocabulary too small.
        DeviceError: see `check_devices`.
        ConfigError: settings that do not go together, or not with this model.
    """
    sizes = known or sized_model(config)
    if sizes.vocab_size < Tokenizer.vocab_size:
        raise ModelError(
            f"the vocabulary of {config.model} is too small for the tokenizer",
            found=f"vocab_size {sizes.vocab_size}",
            allowed=f"{Tokenizer.vocab_size} or more: CLIP's tokenizer has as many ids",
        )
    check_devices(config)
    if config.optimizer.states == "8bit":
        require_torchao()
    check_together(config.optimizer, config.trainer)
    if config.trainer.patch_dropout and sizes.vision_patch_size is None:
        raise ConfigError(
            f"patch_dropout {config.trainer.patch_dropout} is asked for, and {config.model} has no patches",
            allowed="0, or a vision transformer",
        )
    cell = sizes.vision_patch_size or 32
    for side, _ in parse_sizes(config.data.small_images, sizes.image_resolution).stages:
        if side % cell:
            raise ConfigError(
                f"{config.model} cannot take images of {side} pixels",
                found=f"small_images {config.data.small_images!r}",
                allowed=f"multiples of {cell} below {sizes.image_resolution}",
            )
    return sizes


def check_finetune(config: FinetuneConfig) -> None:
    """Say before anything is loaded what a fine-tuning cannot be asked for.

    Raises:
        DeviceError: see `check_devices`.
        ConfigError: settings that do not go together, or not with towers that lakeclip did not make.
    """
    check_devices(config)
    if config.optimizer.states == "8bit":
        require_torchao()
    check_together(config.optimizer, config.trainer)
    for name in ("checkpointing", "patch_dropout", "compile"):
        is_able = name == "checkpointing" and config.start is not None
        if getattr(config.trainer, name) != getattr(TrainerConfig, name) and not is_able:
            raise ConfigError(
                f"{name} is asked for, and fine-tuning trains towers that lakeclip did not make",
                found=f"{name} {getattr(config.trainer, name)}",
                allowed="lakeclip train, or the tower's own way before it is handed over",
            )
    if config.trainer.strategy == sharding.NAME:
        raise ConfigError(
            "fine-tuning is asked for with --strategy fsdp2",
            found="towers that may be cut up in no known way, and a teacher that needs them whole",
            allowed="--strategy ddp",
        )
    if config.data.small_images:
        raise ConfigError(
            "small images first (--small-images) are asked for, and pretrained towers know one size",
            allowed="--image-size, for the whole run",
        )
    has_validation = config.data.val_lake or config.data.val_fraction
    if config.keep.keep_lake and not has_validation:
        raise ConfigError(
            "the best of old and new (--keep-lake) is found with both, and no rows are held out for the new",
            next_step="--val-fraction 0.02, or --val-lake LAKE",
        )


def check_together(optimizer: OptimizerConfig, trainer: TrainerConfig) -> None:
    """Say before anything is built which settings do not go together.

    Raises:
        ConfigError: an average of weights that are cut up between devices; a compiled model with checkpointing.
    """
    if optimizer.ema_decay is not None and trainer.strategy == sharding.NAME:
        raise ConfigError(
            "an average of the weights (ema_decay) is asked for together with --strategy fsdp2",
            found="weights that no device holds whole",
            allowed="--strategy ddp with ema_decay, or fsdp2 without",
        )
    if optimizer.text_weights != "32" and trainer.strategy == sharding.NAME:
        raise ConfigError(
            "text weights in bf16 are asked for together with --strategy fsdp2",
            found="towers of two types, which are cut up as one",
            allowed="--strategy ddp with bf16 text weights, or fsdp2 without",
        )
    if trainer.compile and trainer.checkpointing != "off":
        raise ConfigError(
            "a compiled model is asked for together with checkpointing",
            found=f"checkpointing {trainer.checkpointing}",
            allowed="one of the two: compiling decides itself what is computed again",
        )


def check_devices(config: TrainConfig | FinetuneConfig) -> None:
    """Say before anything is built what cannot be had on this machine, with the command that would work.

    Raises:
        DeviceError: a GPU, a number of GPUs, or float16 arithmetic that is not there.
    """
    wanted, found = config.trainer, torch.cuda.device_count()
    here = f"{found} GPU{'s' * (found != 1)}" if found else "no GPU"
    without_gpu = wanted.accelerator == "gpu" and not found and not torch.backends.mps.is_available()
    if without_gpu:
        what = f"{wanted.devices or 1} GPU(s) asked for (accelerator gpu), and this machine has none"
        able = replace(wanted, accelerator="cpu", devices=None, strategy="auto", precision="32")
    elif wanted.accelerator == "gpu" and found and (wanted.devices or 0) > found:
        what, able = f"{wanted.devices} GPUs are asked for", replace(wanted, devices=found)
    elif wanted.precision == "16" and not found:
        what, able = "float16 is asked for (precision 16), which needs a GPU", replace(wanted, precision="bf16")
    else:
        return
    raise DeviceError(what, found=here, next_step=command(replace(config, trainer=able)))
