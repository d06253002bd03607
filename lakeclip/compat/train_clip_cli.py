"""The commands of train-CLIP, `train.py` and `train_finetune.py`: parse their flags into a configuration."""

from __future__ import annotations

import argparse
import os
import sys

from lakeclip.config.command import format_command
from lakeclip.config.schema import DataConfig, FinetuneConfig, TrainConfig, TrainerConfig
from lakeclip.errors import exit_cleanly

_TOKEN = "ACTIVELOOP_TOKEN"  # noqa: S105 – the variable's name
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def train_main() -> None:
    """Run `python train.py …`."""
    parser = _parser("train.py", "Train CLIP from scratch. The modern command is `lakeclip train`.")
    parser.add_argument("--model_name", required=True, help="a model of the paper, such as RN50 or ViT-B/32")
    flags = _parse(parser)
    config = TrainConfig(model=flags.model_name, data=_data(flags), trainer=_trainer(flags))
    _announce(config)

    def work() -> None:
        from lakeclip.report.run import conclude
        from lakeclip.training.run import train

        conclude(train(config), "train")

    exit_cleanly(work)


def finetune_main() -> None:
    """Run `python train_finetune.py …`."""
    parser = _parser("train_finetune.py", "Fine-tune two pretrained towers. The modern command is `lakeclip finetune`.")
    default = FinetuneConfig()
    parser.add_argument("--image_encoder", default=default.image_encoder, help="torchvision:, timm: or lakeclip:NAME")
    parser.add_argument("--text_encoder", default=default.text_encoder, help="hf:NAME or hf:FOLDER")
    flags = _parse(parser)
    config = FinetuneConfig(
        image_encoder=flags.image_encoder,
        text_encoder=flags.text_encoder,
        data=_data(flags),
        trainer=_trainer(flags),
    )
    _announce(config)

    def work() -> None:
        from lakeclip.report.run import conclude
        from lakeclip.training.run import finetune

        conclude(finetune(config), "finetune")

    exit_cleanly(work)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog="Every --flag_name may be written --flag-name.", allow_abbrev=False
    )
    data, trainer = DataConfig(), TrainerConfig()
    add = parser.add_argument
    add("--path", help="lake with the pairs: a path, s3://… or hub://…")
    add("--folder", help="folder of pairs instead: images and .txt captions that share a stem")
    add("--token", help=f"Activeloop token for --path; better set {_TOKEN} in the environment")
    add("--filter_NSFW", action="store_true", help="use only rows whose NSFW is UNLIKELY")
    add("--batch_size", "--batchsize", type=int, default=data.batch_size, help="pairs per device")
    add("--minibatch_size", type=int, default=0, help="pairs embedded at a time; 0 for the whole batch")
    add("--num_workers", type=int, default=data.num_workers, help="loading processes per device")
    add("--image_size", type=int, help="side of the crop in pixels; the model's by default")
    add("--resize_ratio", type=float, default=data.resize_ratio, help="smallest share of the area that a crop keeps")
    add("--shuffle", type=_truth, nargs="?", const=True, default=data.shuffle, help="true (the default) or false")
    add("--accelerator", default=trainer.accelerator, choices=("auto", "cpu", "gpu", "mps", "tpu"))
    add("--gpus", "--devices", type=int, dest="devices", help="number of devices")
    add("--num_nodes", type=int, default=trainer.num_nodes, help="number of machines")
    add("--strategy", default=trainer.strategy, help="Lightning's: ddp, …")
    add("--fp", "--precision", dest="precision", default=trainer.precision, choices=("32", "16", "bf16"))
    add("--max_epochs", type=int, default=trainer.max_epochs, help="passes over the data")
    add("--max_steps", type=int, help="end after this many steps")
    return parser


def _parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with hyphens as underscores, and move a token into the environment."""
    words = [_underscored(word) for word in sys.argv[1:]]
    flags = parser.parse_args(words)
    if flags.token:
        # Lightning starts the other processes with this process's arguments, which must not show the token.
        os.environ[_TOKEN] = flags.token
        sys.argv[1:] = _without_token(words)
        flags.token = None
    return flags


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _without_token(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and word != "--token" and not word.startswith("--token="):
            kept.append(word)
        skip = word == "--token"
    return kept


def _truth(word: str) -> bool:
    if word.lower() not in _TRUTH:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return _TRUTH[word.lower()]


def _data(flags: argparse.Namespace) -> DataConfig:
    return DataConfig(
        lake=flags.path,
        folder=flags.folder,
        filter_nsfw=flags.filter_NSFW,
        batch_size=flags.batch_size,
        image_size=flags.image_size,
        resize_ratio=flags.resize_ratio,
        shuffle=flags.shuffle,
        num_workers=flags.num_workers,
    )


def _trainer(flags: argparse.Namespace) -> TrainerConfig:
    # In train-CLIP, `--gpus N` alone selected GPUs.
    requested_gpus = any(word.partition("=")[0] == "--gpus" for word in sys.argv) and bool(flags.devices)
    if requested_gpus and flags.accelerator == "auto":
        flags.accelerator = "gpu"
    return TrainerConfig(
        max_epochs=flags.max_epochs,
        max_steps=flags.max_steps,
        minibatch_size=flags.minibatch_size or None,
        precision=flags.precision,
        accelerator=flags.accelerator,
        devices=flags.devices or None,
        num_nodes=flags.num_nodes,
        strategy=flags.strategy,
    )


def _announce(config: TrainConfig | FinetuneConfig) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # Rank 0 of this machine prints the command.
    token = f"{_TOKEN}=… " if os.environ.get(_TOKEN) else ""
    sys.stdout.write(f"equivalent command: {token}{format_command(config)}\n")
    sys.stdout.flush()
