"""Tests that open_clip loads lakeclip's exports and computes the same features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lakeclip.checkpoints.exports import export
from lakeclip.config.schema import ModelConfig
from tests.unit.checkpoints.test_exports import RESNET, VIT, random_clip

open_clip = pytest.importorskip("open_clip")


@torch.no_grad()
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_open_clip_computes_the_same_features(config: ModelConfig, sigmoid: bool, tmp_path: Path) -> None:
    model = random_clip(config, sigmoid=sigmoid)
    export(model, "open_clip", tmp_path / "out")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/out")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}/out")(["a photo of a dog", "two cats"])
    theirs.eval()
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(theirs.encode_image(images), model.encode_image(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.encode_text(tokens), model.encode_text(tokens), rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.logit_scale, model.logit_scale)
    if sigmoid:
        torch.testing.assert_close(theirs.logit_bias, model.logit_bias)
    assert preprocess.transforms[0].size in (64, (64, 64))
