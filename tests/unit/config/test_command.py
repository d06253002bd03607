"""Tests that the command line of a configuration gives that configuration again."""

from __future__ import annotations

import shlex

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from lakeclip.config.command import format_command
from lakeclip.config.schema import DataConfig, FinetuneConfig, OptimizerConfig, TrainConfig, TrainerConfig

_WORDS = st.text("abcXYZ089./:@_ '\"=<>$*\\é-", min_size=1, max_size=12).filter(lambda word: not word.startswith("-"))


def parse(line: str) -> TrainConfig | FinetuneConfig:
    """Parse a command line as the shell and the command would."""
    program, verb, *flags = shlex.split(line)
    assert program == "lakeclip"
    kind = {"train": TrainConfig, "finetune": FinetuneConfig}[verb]
    return tyro.cli(kind, args=flags, config=(tyro.conf.OmitArgPrefixes,))


def test_defaults_are_omitted() -> None:
    assert format_command(TrainConfig()) == "lakeclip train"
    assert format_command(FinetuneConfig()) == "lakeclip finetune"


def test_flags_are_formatted_as_a_user_would_type_them() -> None:
    config = TrainConfig(
        model="ViT-B/16",
        data=DataConfig(lake="hub://a/b", query="NSFW == 'UNLIKELY'", batch_size=64, shuffle=False),
        trainer=TrainerConfig(precision="bf16", devices=2, strategy="ddp"),
    )
    assert format_command(config) == (
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
def test_the_command_gives_the_configuration(config: TrainConfig | FinetuneConfig) -> None:
    assert parse(format_command(config)) == config


@given(
    lake=_WORDS,
    query=st.none() | _WORDS,
    lr=st.none() | st.floats(1e-12, 10),
    batch_size=st.integers(1, 10**5),
    shuffle=st.booleans(),
)
@pytest.mark.slow
def test_any_value_survives_quoting(
    lake: str, query: str | None, lr: float | None, batch_size: int, shuffle: bool
) -> None:
    config = TrainConfig(
        data=DataConfig(lake=lake, query=query, batch_size=batch_size, shuffle=shuffle),
        optimizer=OptimizerConfig(lr=lr),
    )
    assert parse(format_command(config)) == config
