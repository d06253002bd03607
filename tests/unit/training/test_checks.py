"""What a run refuses before anything is made: settings that do not go together, or not with the model."""

from __future__ import annotations

import pytest

from lakeclip.config.schema import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.errors import ConfigError
from lakeclip.training.checks import checked_sizes


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (TrainConfig(model="RN50", trainer=TrainerConfig(patch_dropout=0.5)), "has no patches"),
        (TrainConfig(data=DataConfig(small_images="100:0.5")), "cannot take images of 100 pixels"),
        (TrainConfig(model="RN50", data=DataConfig(small_images="192:0.2 200:0.2")), "cannot take images of 200"),
        (TrainConfig(data=DataConfig(small_images="224:0.5")), "smaller images"),
        (TrainConfig(trainer=TrainerConfig(compile=True, checkpointing="on")), "compiled model"),
        (TrainConfig(optimizer=OptimizerConfig(ema_decay=0.9), trainer=TrainerConfig(strategy="fsdp2")), "average"),
        (
            TrainConfig(optimizer=OptimizerConfig(text_weights="bf16"), trainer=TrainerConfig(strategy="fsdp2")),
            "text weights in bf16",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(config: TrainConfig, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        checked_sizes(config)
    assert caught.value.allowed


def test_what_goes_together_passes() -> None:
    config = TrainConfig(data=DataConfig(small_images="96:0.5"), trainer=TrainerConfig(patch_dropout=0.5, compile=True))
    assert checked_sizes(config).image_resolution == 224
