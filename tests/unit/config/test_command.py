"""A configuration as the command that stands for it: typing that command gives the same configuration."""

from __future__ import annotations

import shlex

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.config.command import command
from lakeclip.config.schema import DataConfig, FinetuneConfig, OptimizerConfig, TrainConfig, TrainerConfig

_WORDS = st.text("abcXYZ089./:@_ '\"=<>$*\\é-", min_size=1, max_size=12).filter(lambda word: not word.startswith("-"))


def typed(line: str) -> TrainConfig | FinetuneConfig:
    """What a command line means, read as the shell and the verb read it."""
    program, verb, *flags = shlex.split(line)
    assert program == "lakeclip"
    kind = {"train": TrainConfig, "finetune": FinetuneConfig}[verb]
    return tyro.cli(kind, args=flags, config=(tyro.conf.OmitArgPrefixes,))


def test_what_is_the_default_is_left_out() -> None:
    assert command(TrainConfig()) == "lakeclip train"
    assert command(FinetuneConfig()) == "lakeclip finetune"


def test_reads_as_one_would_type_it() -> None:
    config = TrainConfig(
        model="ViT-B/16",
        data=DataConfig(lake="hub://a/b", query="NSFW == 'UNLIKELY'", batch_size=64, shuffle=False),
        trainer=TrainerConfig(precision="bf16", devices=2, strategy="ddp"),
    )
    assert command(config) == (
        "lakeclip train --model ViT-B/16 --lake hub://a/b --query 'NSFW == '\"'\"'UNLIKELY'\"'\"'' "
        "--batch-size 64 --no-shuffle --precision bf16 --devices 2 --strategy ddp"
    )


@pytest.mark.parametrize(
    "config",
    [
        FinetuneConfig(image_encoder="lakeclip:RN50", average_word_embeddings=False, embed_dim=64),
        TrainConfig(optimizer=OptimizerConfig(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, warmup_steps=0)),
    ],
)
def test_typing_the_command_gives_the_configuration(config: TrainConfig | FinetuneConfig) -> None:
    assert typed(command(config)) == config


@given(
    lake=_WORDS,
    query=st.none() | _WORDS,
    lr=st.none() | st.floats(1e-12, 10),
    batch_size=st.integers(1, 10**5),
    shuffle=st.booleans(),
)
def test_whatever_the_words_hold(
    lake: str, query: str | None, lr: float | None, batch_size: int, shuffle: bool
) -> None:
    config = TrainConfig(
        data=DataConfig(lake=lake, query=query, batch_size=batch_size, shuffle=shuffle),
        optimizer=OptimizerConfig(lr=lr),
    )
    assert typed(command(config)) == config
