"""Checks before a run is built: settings that exclude each other, or do not fit the model."""

from __future__ import annotations

import pytest

from lakeclip.config.schema import DataConfig, EvaluationConfig, LossConfig, OptimizerConfig, TrainConfig, TrainerConfig
from lakeclip.errors import ConfigError, ModelError
from lakeclip.training.checks import check_train


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (TrainConfig(model="RN50", trainer=TrainerConfig(patch_dropout=0.5)), "has no patches"),
        (TrainConfig(data=DataConfig(small_images="100:0.5")), "cannot process images of 100 pixels"),
        (TrainConfig(model="RN50", data=DataConfig(small_images="192:0.2 200:0.2")), "cannot process images of 200"),
        (TrainConfig(data=DataConfig(small_images="224:0.5")), "smaller images"),
        (TrainConfig(trainer=TrainerConfig(compile=True, checkpointing="on")), "compiled model"),
        (TrainConfig(optimizer=OptimizerConfig(ema_decay=0.9), trainer=TrainerConfig(strategy="fsdp2")), "average"),
        (
            TrainConfig(optimizer=OptimizerConfig(text_weights="bf16"), trainer=TrainerConfig(strategy="fsdp2")),
            "text weights in bf16",
        ),
        (TrainConfig(loss=LossConfig(objective="margin")), "unknown objective 'margin'"),
        (TrainConfig(loss=LossConfig(objective="sigmoid", label_smoothing=0.1)), "cannot smooth labels"),
        (
            TrainConfig(evaluation=EvaluationConfig(eval_lake="x", eval_label_column="y", eval_scores=("zero",))),
            "no evaluation 'zero'",
        ),
    ],
)
def test_incompatible_settings_are_refused(config: TrainConfig, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        check_train(config)
    assert caught.value.allowed


@pytest.mark.parametrize(("model", "size"), [("ViT-B/32", 16), ("ViT-B/32", 40), ("RN50", 16), ("ViT-Ti/8-64px", 7)])
def test_images_smaller_than_a_patch_or_of_broken_patches_are_refused(model: str, size: int) -> None:
    with pytest.raises(ModelError, match="cannot have these sizes") as caught:
        check_train(TrainConfig(model=model, data=DataConfig(image_size=size)))
    assert f"image_resolution: {size}" in caught.value.found
    assert "--image-size" in caught.value.next_step


def test_compatible_settings_pass() -> None:
    config = TrainConfig(data=DataConfig(small_images="96:0.5"), trainer=TrainerConfig(patch_dropout=0.5, compile=True))
    assert check_train(config).image_resolution == 224
