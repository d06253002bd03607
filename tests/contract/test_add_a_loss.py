"""A loss added from outside the package, as CONTRIBUTING.md describes it: registered, trained, resumed and loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lakeclip
from lakeclip.errors import ConfigError

_LN_100 = math.log(100)


def margin_loss(
    image_features: Tensor,
    text_features: Tensor,
    scalars: Mapping[str, Tensor],
    *,
    positive_ids: Tensor | None,
    label_smoothing: float,
    local_only: bool,
) -> Tensor:
    """CLIP's loss with a learned margin that each pair's own similarity has to exceed the others by."""
    cosine = image_features @ text_features.T
    margin = scalars["margin"] * torch.eye(len(cosine), device=cosine.device)
    logits = scalars["logit_scale"].exp() * (cosine - margin)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@pytest.fixture
def registered() -> Iterator[None]:
    lakeclip.register_loss(
        "margin",
        lakeclip.Loss(
            margin_loss,
            scalars={"logit_scale": math.log(1 / 0.07), "margin": 0.1},
            limits={"logit_scale": (-math.inf, _LN_100), "margin": (0.0, 0.5)},
        ),
    )
    yield
    del lakeclip.LOSSES["margin"]


def test_a_registered_loss_trains_resumes_and_loads(
    registered: None, pairs_lake: Path, tiny_models: Path, tmp_path: Path
) -> None:
    config = lakeclip.TrainConfig(
        model="tiny-vit",
        model_config=str(tiny_models),
        data=lakeclip.DataConfig(lake=str(pairs_lake), batch_size=16, num_workers=0, val_fraction=0.1),
        loss=lakeclip.LossConfig(objective="margin"),
        optimizer=lakeclip.OptimizerConfig(lr=1e-2, warmup_steps=1),
        trainer=lakeclip.TrainerConfig(max_steps=3, runs=str(tmp_path), name="run", accelerator="cpu", track=()),
    )
    result = lakeclip.train(config)
    assert result.steps == 3
    curves = (result.folder / "metrics.csv").read_text().splitlines()
    assert "train/margin" in curves[0].split(",")
    model = lakeclip.load(result.folder).model
    margin = model.scalars["margin"].item()
    assert margin != pytest.approx(0.1, abs=1e-6), "the margin is learned"
    assert 0 <= margin <= 0.5

    longer = lakeclip.TrainConfig(
        **{
            **vars(config),
            "trainer": lakeclip.TrainerConfig(max_steps=5, runs=str(tmp_path), name="run", accelerator="cpu", track=()),
        }
    )
    assert lakeclip.train(longer, resume=result.folder).steps == 5


def test_an_unknown_objective_is_refused_before_anything_is_made(pairs_lake: Path, tmp_path: Path) -> None:
    config = lakeclip.TrainConfig(
        data=lakeclip.DataConfig(lake=str(pairs_lake)),
        loss=lakeclip.LossConfig(objective="magic"),
        trainer=lakeclip.TrainerConfig(runs=str(tmp_path / "runs")),
    )
    with pytest.raises(ConfigError, match=r"unknown objective 'magic'[\s\S]*softmax, sigmoid"):
        lakeclip.train(config)
    assert not (tmp_path / "runs").exists()


def test_a_name_cannot_be_registered_twice() -> None:
    with pytest.raises(ConfigError, match="registered already"):
        lakeclip.register_loss("softmax", lakeclip.Loss(margin_loss, scalars={"logit_scale": 0.0}))


def test_a_loss_needs_a_logit_scale() -> None:
    with pytest.raises(ConfigError, match="logit_scale"):
        lakeclip.register_loss("bare", lakeclip.Loss(margin_loss, scalars={}))
