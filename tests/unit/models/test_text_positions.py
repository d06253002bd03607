"""Position embeddings of the text tower, stretched to a longer context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lakeclip.checkpoints.convert import PretrainedWeights, build_model
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import CheckpointError
from lakeclip.models.clip import CLIP
from lakeclip.models.text_transformer import stretch_position_embedding
from lakeclip.text.tokenizer import Tokenizer

SMALL = ModelConfig(
    embed_dim=16,
    image_resolution=16,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=2,
    transformer_layers=2,
)
SHORT, LONG = ["a dog", "two red circles beside a blue square"], ["a very long caption of a dog " * 20]


def weights(config: ModelConfig = SMALL) -> PretrainedWeights:
    torch.manual_seed(0)
    return PretrainedWeights(Path("weights.pt"), "openai", config, CLIP(config).state_dict())


def test_the_first_twenty_stay_and_the_others_are_interpolated() -> None:
    embedding = torch.randn(77, 3, dtype=torch.float64)
    stretched = stretch_position_embedding(embedding, 248)
    assert torch.equal(stretched[:20], embedding[:20])
    for number in range(228):  # by Long-CLIP's rule: four for each, and the last three by the last slope
        place, quarter = divmod(number, 4)
        start, slope = embedding[20 + place], embedding[min(20 + place, 75) + 1] - embedding[min(20 + place, 75)]
        torch.testing.assert_close(stretched[20 + number], start + slope * quarter / 4)


@pytest.mark.parametrize(("old", "new"), [(77, 77), (77, 32), (77, 78), (16, 64), (2, 9), (40, 41), (41, 1000)])
def test_any_length(old: int, new: int) -> None:
    embedding = torch.linspace(0, 1, old)[:, None].expand(old, 2)
    stretched = stretch_position_embedding(embedding, new)
    assert stretched.shape == (new, 2)
    kept = min(20, old // 2) if new > old else new
    assert torch.equal(stretched[:kept], embedding[:kept])
    assert (stretched[1:] >= stretched[:-1]).all(), "positions stay in order"


def test_short_captions_have_the_same_features_and_long_ones_are_read_further() -> None:
    before, after = build_model(weights()), build_model(weights(), context_length=248)
    assert after.config == replace(SMALL, context_length=248)
    with torch.no_grad():
        for texts in (SHORT, LONG):
            old, new = before.encode_text(Tokenizer(77)(texts)), after.encode_text(Tokenizer(248)(texts))
            assert torch.allclose(old, new, atol=1e-6) == (texts is SHORT)
        longer = after.encode_text(Tokenizer(248)([LONG[0] + " and a cat", LONG[0]]))
    assert not torch.allclose(longer[0], longer[1]), "the context holds 140 tokens and more"


def test_a_shorter_context() -> None:
    before, after = build_model(weights()), build_model(weights(), context_length=32)
    with torch.no_grad():
        torch.testing.assert_close(after.encode_text(Tokenizer(32)(SHORT)), before.encode_text(Tokenizer(77)(SHORT)))


@pytest.mark.parametrize("settings", [{"text_pool": "last"}, {"causal": False}])
def test_towers_that_read_the_padding_are_refused(settings: dict[str, object]) -> None:
    config = replace(SMALL, **settings)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"context of 77 tokens .* cannot be changed[\s\S]*without --context-len"):
        build_model(weights(config), context_length=248)
