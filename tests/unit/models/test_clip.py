"""Tests of `CLIP`: parameter layout, inputs, features, initialization."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lakeclip.config.schema import ModelConfig
from lakeclip.errors import ModelError
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD, normalize_images
from lakeclip.models.text_transformer import group_lengths, pack_captions
from lakeclip.models.vision_transformer import resample_position_embedding
from lakeclip.models.zoo import available_models, model_config
from lakeclip.training.optim.optimizers import store_text_in_bfloat16

VIT = ModelConfig(
    embed_dim=32,
    image_resolution=32,
    vision_layers=2,
    vision_width=128,
    vision_patch_size=8,
    context_length=16,
    vocab_size=99,
    transformer_width=64,
    transformer_heads=4,
    transformer_layers=3,
)
RESNET = dataclasses.replace(VIT, vision_layers=(1, 1, 1, 1), vision_width=8, vision_patch_size=None)
END = 98


@pytest.fixture(params=["vit", "resnet"])
def model(request: pytest.FixtureRequest) -> CLIP:
    torch.manual_seed(0)
    return CLIP({"vit": VIT, "resnet": RESNET}[request.param]).eval()


def captions(lengths: list[int], context: int) -> torch.Tensor:
    """Return random token ids: words, the end of text, then zeros."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[: length - 1] = torch.randint(1, END, (length - 1,), generator=generator)
        row[length - 1] = END
    return ids


def test_parameter_names_are_openais() -> None:
    vit, resnet = set(CLIP(VIT).state_dict()), set(CLIP(RESNET).state_dict())
    text = {"logit_scale", "positional_embedding", "text_projection", "token_embedding.weight"}
    text |= {f"ln_final.{part}" for part in ("weight", "bias")}
    block = ["attn.in_proj_weight", "attn.in_proj_bias"]
    block += [
        f"{name}.{part}"
        for name in ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for part in ("weight", "bias")
    ]
    text |= {f"transformer.resblocks.{i}.{name}" for i in range(3) for name in block}
    image = {f"visual.{name}" for name in ("class_embedding", "positional_embedding", "proj", "conv1.weight")}
    image |= {f"visual.{name}.{part}" for name in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    image |= {f"visual.transformer.resblocks.{i}.{name}" for i in range(2) for name in block}
    assert vit == text | image
    assert {name for name in resnet if not name.startswith("visual.")} == text
    assert {"visual.layer1.0.downsample.0.weight", "visual.layer4.0.bn3.running_var"} < resnet
    assert {f"visual.attnpool.{name}_proj.bias" for name in "qkvc"} < resnet
    assert "visual.attnpool.positional_embedding" in resnet


def test_shapes_of_features_and_values_of_logits(model: CLIP) -> None:
    images, ids = torch.randn(3, 3, 32, 32), captions([4, 9], 16)
    image_features, text_features = model.encode_image(images), model.encode_text(ids)
    assert image_features.shape == (3, 32)
    assert text_features.shape == (2, 32)
    per_image, per_text = model(images, ids)
    cosine = F.cosine_similarity(image_features[:, None], text_features[None], dim=-1)
    torch.testing.assert_close(per_image, cosine / 0.07)
    torch.testing.assert_close(per_text, per_image.T)


def test_uint8_pixels_are_normalised_by_the_model(model: CLIP) -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    torch.testing.assert_close(
        model.encode_image(pixels), model.encode_image((pixels / 255 - mean) / std), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalize_images(dtype: torch.dtype) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    normal = normalize_images(pixels, mean, std, dtype)
    assert normal.dtype == dtype
    exact = (pixels.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    torch.testing.assert_close(normal.double(), exact, rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 2e-6)


def padded_features(model: CLIP, ids: torch.Tensor) -> torch.Tensor:
    """Encode every caption at the full context length, padding included, as OpenAI's model does."""
    tokens = model.token_embedding(ids) + model.positional_embedding
    ends = ids.argmax(dim=-1)
    feature = model.transformer(tokens.flatten(0, 1), [(len(ids), ids.shape[1])], ends)
    return model.ln_final(feature) @ model.text_projection


@given(lengths=st.lists(st.integers(2, 16), min_size=1, max_size=9), extra=st.integers(0, 14))
@settings(max_examples=30)
def test_captions_without_padding_give_the_same_features(lengths: list[int], extra: int) -> None:
    torch.manual_seed(0)
    model = CLIP(VIT).double().eval()
    ids = captions(lengths, 16)
    trimmed = ids[:, : min(16, max(lengths) + extra)]
    assert len(pack_captions(ids).ids) <= sum(lengths) + 4 * len(lengths)
    torch.testing.assert_close(model.encode_text(trimmed), padded_features(model, ids), rtol=1e-12, atol=1e-13)


def test_captions_without_padding_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = CLIP(VIT).double()
    ids = captions([5, 7, 16, 5, 2], 16)
    parameters = [p for name, p in model.named_parameters() if not name.startswith(("visual", "logit_scale"))]
    padded = torch.autograd.grad(padded_features(model, ids).square().sum(), parameters)
    packed = torch.autograd.grad(model.encode_text(ids).square().sum(), parameters)
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-12)


def test_captions_without_padding_agree_to_six_digits_in_float32() -> None:
    torch.manual_seed(0)
    model = CLIP(VIT)
    ids = captions([5, 7, 16, 5, 2], 16)
    padded, packed = padded_features(model, ids), model.encode_text(ids)
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-6)
    weight = model.transformer.resblocks[0].attn.in_proj_weight
    gradients = [torch.autograd.grad(features.square().mean(), weight)[0] for features in (padded, packed)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


@given(lengths=st.lists(st.integers(1, 77), min_size=1, max_size=60), cost=st.integers(0, 2000))
@settings(max_examples=50)
def test_captions_are_grouped_at_the_least_cost(lengths: list[int], cost: int) -> None:
    lengths.sort()
    groups = group_lengths(lengths, cost)
    assert sum(captions for captions, _ in groups) == len(lengths)
    padded = [length for captions, length in groups for _ in range(captions)]
    assert all(has >= needs for has, needs in zip(padded, lengths, strict=True))
    total = sum(padded) + cost * len(groups)
    each = Counter(lengths)
    assert total <= len(lengths) * lengths[-1] + cost, "all in one group"
    assert total <= sum(lengths) + cost * len(each), "no padding"


def test_every_parameter_gets_a_gradient(model: CLIP) -> None:
    """Require a gradient for every parameter, so that neither tower has unused ones."""
    per_image, _ = model(torch.randn(4, 3, 32, 32), captions([3, 4, 5, 16], 16))
    F.cross_entropy(per_image, torch.arange(4)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_half_precision_features_stay_close_to_float32() -> None:
    torch.manual_seed(0)
    model = CLIP(VIT).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    ids = captions([4, 9], 16)
    image, text = model.encode_image(pixels), model.encode_text(ids)
    with torch.autocast("cpu", torch.bfloat16):
        mixed_image, mixed_text = model.encode_image(pixels), model.encode_text(ids)
    assert mixed_image.dtype == mixed_text.dtype == torch.bfloat16
    half = model.bfloat16()
    for approximate, exact in (
        (mixed_image, image),
        (mixed_text, text),
        (half.encode_image(pixels), image),
        (half.encode_text(ids), text),
    ):
        assert F.cosine_similarity(approximate.float(), exact).min() > 0.999


def test_a_new_model_is_float32_with_the_papers_temperature() -> None:
    model = CLIP(RESNET)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert math.exp(model.logit_scale.item()) == pytest.approx(1 / 0.07)


def test_initial_standard_deviations_are_openais() -> None:
    torch.manual_seed(0)
    width, layers = 256, 3
    model = CLIP(dataclasses.replace(VIT, transformer_width=width, vision_width=256, vocab_size=2000))
    residual = width**-0.5 * (2 * layers) ** -0.5
    expected = {
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "text_projection": width**-0.5,
        "transformer.resblocks.1.attn.in_proj_weight": width**-0.5,
        "transformer.resblocks.1.attn.out_proj.weight": residual,
        "transformer.resblocks.1.mlp.c_fc.weight": (2 * width) ** -0.5,
        "transformer.resblocks.1.mlp.c_proj.weight": residual,
        "visual.proj": 256**-0.5,
        "visual.positional_embedding": 256**-0.5,
        "visual.class_embedding": 256**-0.5,
        # Xavier uniform over a (3 · 256, 256) matrix, as in `nn.MultiheadAttention`.
        "visual.transformer.resblocks.1.attn.in_proj_weight": (2 / (4 * 256)) ** 0.5,
    }
    for name, std in expected.items():
        assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.15 if "class" in name else 0.05), name

    pool = CLIP(dataclasses.replace(RESNET, vision_width=16)).visual.attnpool
    for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        assert projection.weight.std().item() == pytest.approx(512**-0.5, rel=0.05)
    assert pool.positional_embedding.std().item() == pytest.approx(512**-0.5, rel=0.1)


@pytest.mark.parametrize("name", list(available_models()))
def test_every_model_runs_at_its_own_resolution(name: str) -> None:
    """Run every shipped model on the meta device; some need 288 to 448 pixels."""
    config = model_config(name)
    with torch.device("meta"), torch.no_grad():
        model = CLIP(config)
        side = config.image_resolution
        assert model.encode_image(torch.zeros(2, 3, side, side)).shape == (2, config.embed_dim)
        assert model.encode_text(torch.zeros(2, 77, dtype=torch.int64)).shape == (2, config.embed_dim)


def test_a_narrow_resnet_runs_at_448_pixels() -> None:
    model = CLIP(dataclasses.replace(RESNET, image_resolution=448, vision_width=2)).eval()
    features = model.encode_image(torch.randint(0, 256, (1, 3, 448, 448), dtype=torch.uint8))
    assert features.isfinite().all()


def test_inputs_of_the_wrong_shape_raise(model: CLIP) -> None:
    with pytest.raises(ModelError, match=r"images do not fit(.|\n)*\(2, 3, 64, 64\)(.|\n)*\(batch, 3, 32, 32\)"):
        model.encode_image(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ModelError, match=r"token ids do not fit(.|\n)*\(2, 17\)(.|\n)*at most 16 tokens"):
        model.encode_text(torch.zeros(2, 17, dtype=torch.int64))


def test_the_error_lists_all_impossible_sizes() -> None:
    with pytest.raises(ModelError) as caught:
        CLIP(dataclasses.replace(VIT, vision_width=100, image_resolution=30, transformer_heads=7))
    for field in ("vision_width: 100", "image_resolution: 30", "transformer_heads: 7"):
        assert field in str(caught.value)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_text_tower_in_bfloat16_computes_in_bfloat16_with_nearly_the_same_features(autocast: bool) -> None:
    """Compare with float32 and with autocast, with the image tower in float32."""
    torch.manual_seed(0)
    exact = CLIP(VIT).eval()
    half = CLIP(VIT).eval()
    half.load_state_dict(exact.state_dict())
    store_text_in_bfloat16(half)
    ids = captions([3, 9, 16], 16)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = exact.encode_text(ids)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            features, logits = half.encode_text(ids), half(images, ids)[0]
            allowed = exact.encode_text(ids).float() if autocast else expected
    assert features.dtype == torch.bfloat16
    assert F.cosine_similarity(features.float(), expected).min() > 0.999
    assert F.cosine_similarity(features.float(), allowed).min() > 0.999
    assert logits.isfinite().all()


def test_the_gradient_of_a_frequent_token_is_exact_in_bfloat16() -> None:
    """Check a token of all captions: summed in bfloat16, the gradients of later captions would be lost."""
    torch.manual_seed(0)
    exact = CLIP(VIT)
    exact.requires_grad_(False)
    exact.token_embedding.weight.requires_grad_(True)
    half = copy.deepcopy(exact)
    store_text_in_bfloat16(half)
    ids = captions([3], 16)[:, :3].expand(3000, -1)
    for model in (exact, half):
        model.encode_text(ids).sum().backward()
    found, expected = (model.token_embedding.weight.grad[ids[0]].float() for model in (half, exact))  # type: ignore[index]
    assert half.token_embedding.weight.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.05


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_smaller_images_are_accepted_only_in_training(config: ModelConfig) -> None:
    config = dataclasses.replace(config, image_resolution=64)
    model = CLIP(config)
    small = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert model.encode_image(small).shape == (2, 32)
    with pytest.raises(ModelError, match="smaller by multiples"):
        model.encode_image(small[..., :30, :30])
    with pytest.raises(ModelError, match="images do not fit"):
        model.eval().encode_image(small)


def test_position_embeddings_are_resampled_for_a_smaller_grid() -> None:
    ramp = torch.arange(4.0).repeat_interleave(4)[:, None] * torch.ones(16, 3)
    embedding = torch.cat([torch.full((1, 3), 9.0), ramp])
    small = resample_position_embedding(embedding, 2)
    assert small[0].eq(9).all()
    assert small[1:].shape == (4, 3)
    torch.testing.assert_close(small[1], small[2])
    assert (small[3] - small[1] > 1.5).all()
    assert resample_position_embedding(embedding, 4) is embedding


def test_patch_dropout_is_random_in_training_and_off_in_evaluation() -> None:
    torch.manual_seed(0)
    model = CLIP(VIT)
    model.visual.patch_dropout = 0.5
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    first, second = model.encode_image(images), model.encode_image(images)
    assert not torch.allclose(first, second)
    rows: list[int] = []
    hook = model.visual.transformer.resblocks[0].register_forward_pre_hook(
        lambda _, inputs: rows.append(len(inputs[0]))
    )
    model.encode_image(images)
    hook.remove()
    assert rows == [2 * (1 + 8)]
    model.eval()
    torch.testing.assert_close(model.encode_image(images), model.encode_image(images))


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        (
            {"vision_layers": 1, "vision_width": 64, "vision_patch_size": 16},
            {
                "positional_embedding": -0.025368,
                "text_projection": 0.129139,
                "visual.proj": 0.049481,
                "transformer.resblocks.0.attn.out_proj.weight": 0.16591,
                "token_embedding.weight": 0.003141,
            },
        ),
        (
            {"vision_layers": (1, 1, 1, 1), "vision_width": 4, "vision_patch_size": None},
            {
                "positional_embedding": 0.007778,
                "text_projection": 0.424281,
                "visual.attnpool.c_proj.weight": 0.077116,
                "transformer.resblocks.0.attn.out_proj.weight": 0.112509,
                "token_embedding.weight": -0.002015,
            },
        ),
    ],
)
def test_a_seed_gives_the_same_initial_weights_as_ever(tower: dict[str, Any], expected: dict[str, float]) -> None:
    """A run can only be reproduced if its initial weights can: their random numbers are drawn in a fixed order."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "image_resolution": 32, "context_length": 8, "vocab_size": 50}
    text = {"transformer_width": 8, "transformer_heads": 1, "transformer_layers": 1}
    weights = CLIP(ModelConfig(**sizes, **text, **tower)).state_dict()
    assert {name: float(weights[name].flatten()[-1]) for name in expected} == pytest.approx(expected, abs=1e-6)
