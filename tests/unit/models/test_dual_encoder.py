"""Tests of `DualEncoder` with encoders of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BatchEncoding,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    SiglipTextConfig,
    SiglipTextModel,
    T5Config,
    T5Model,
)

from lakeclip.errors import ModelError
from lakeclip.models.clip import IMAGE_MEAN, IMAGE_STD
from lakeclip.models.dual_encoder import DualEncoder


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    return BertModel(config).eval()


def image_encoder(dim: int = 10) -> nn.Sequential:
    """Build an image encoder without a layer called conv1, and with a norm whose statistics a probe would change."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, dim)
    )


IDS = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0], [2, 5, 6, 7, 8, 3]])
MASK = (IDS != 0).long()


def test_only_encoders_of_another_width_get_a_head() -> None:
    both = DualEncoder(image_encoder(10), bert(), embed_dim=16)
    assert isinstance(both.image_projection, nn.Linear)
    assert isinstance(both.text_projection, nn.Linear)
    assert both.encode_image(torch.randn(3, 3, 32, 32)).shape == both.encode_text(IDS).shape == (3, 16)

    none = DualEncoder(image_encoder(24), bert())
    assert isinstance(none.image_projection, nn.Identity)
    assert isinstance(none.text_projection, nn.Identity)


def test_probing_the_width_does_not_change_the_image_encoder() -> None:
    encoder = image_encoder()
    encoder[1].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    DualEncoder(encoder, bert(), embed_dim=16)
    assert [module.training for module in encoder.modules()] == [True, True, False, True, True, True]
    torch.testing.assert_close(encoder.state_dict(), before)


def test_image_dim_avoids_the_probe() -> None:
    class Unprobed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    model = DualEncoder(Unprobed(), bert(), embed_dim=16, image_dim=5)
    assert model.image_projection.in_features == 5


def test_the_text_feature_is_the_pooled_output() -> None:
    text = bert()
    model = DualEncoder(image_encoder(), text, embed_dim=24).eval()
    expected = text(input_ids=IDS, attention_mask=MASK).pooler_output
    torch.testing.assert_close(model.encode_text({"input_ids": IDS, "attention_mask": MASK}), expected)


def test_without_a_pooler_the_text_feature_is_the_first_token() -> None:
    torch.manual_seed(0)
    text = DistilBertModel(DistilBertConfig(vocab_size=50, dim=24, n_layers=1, n_heads=2, hidden_dim=32)).eval()
    model = DualEncoder(image_encoder(), text, embed_dim=24).eval()
    expected = text(input_ids=IDS, attention_mask=MASK).last_hidden_state[:, 0]
    torch.testing.assert_close(model.encode_text(IDS), expected)


def test_average_of_word_embeddings_ignores_padding() -> None:
    text = bert()
    model = DualEncoder(image_encoder(), text, embed_dim=24, average_word_embeddings=True).eval()
    hidden = text(input_ids=IDS, attention_mask=MASK).last_hidden_state
    expected = torch.stack([row[:length].mean(dim=0) for row, length in zip(hidden, MASK.sum(dim=1), strict=True)])
    torch.testing.assert_close(model.encode_text(IDS), expected)
    torch.testing.assert_close(model.encode_text(IDS[:2, :4]), expected[:2])


def test_ids_dict_and_batch_encoding_give_equal_features() -> None:
    model = DualEncoder(image_encoder(), bert(), embed_dim=16).eval()
    encoding = BatchEncoding({"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)})
    features = model.encode_text(IDS)
    torch.testing.assert_close(model.encode_text(encoding), features)
    torch.testing.assert_close(model.encode_text({"input_ids": IDS}), features)


@pytest.mark.parametrize("average", [False, True])
def test_every_trainable_parameter_gets_a_gradient(average: bool) -> None:
    model = DualEncoder(image_encoder(), bert(), embed_dim=16, average_word_embeddings=average)
    per_image, per_text = model(torch.randn(3, 3, 32, 32), IDS)
    torch.testing.assert_close(per_image, per_text.T)
    F.cross_entropy(per_image, torch.arange(3)).backward()
    without_gradient = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without_gradient == []


def test_uint8_pixels_are_normalised_with_the_given_statistics() -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    encoder = image_encoder().eval()
    for mean, std in ((IMAGE_MEAN, IMAGE_STD), ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))):
        model = DualEncoder(encoder, bert(), embed_dim=10, image_mean=mean, image_std=std).eval()
        normal = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(model.encode_image(pixels), encoder(normal), rtol=1e-4, atol=1e-5)


class Outputs(nn.Module):
    """An image encoder whose output another function forms."""

    def __init__(self, form: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.encoder = image_encoder()
        self.form = form

    def forward(self, images: Tensor) -> Any:
        return self.form(self.encoder(images), self.training)


class Classified(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


@pytest.mark.parametrize(
    "form",
    [
        lambda features, training: Classified(features, features[:, :2]) if training else features,
        lambda features, training: [features, "more"],
        lambda features, training: {"out": features, "aux": features[:, :2]},
        lambda features, training: {"any": features},
        lambda features, training: {"last_hidden_state": features[:, None], "pooler_output": features},
        lambda features, training: features[:, :, None, None].expand(-1, -1, 4, 5),
        lambda features, training: {"out": features[:, :, None, None]},
    ],
)
def test_outputs_of_every_form(form: Callable[[Tensor, bool], Any]) -> None:
    encoder = Outputs(form)
    model = DualEncoder(encoder, bert(), embed_dim=10)
    images = torch.randn(3, 3, 32, 32)
    for training in (True, False):
        torch.testing.assert_close(model.train(training).encode_image(images), encoder.encoder(images))


def test_probing_leaves_the_generator_of_random_numbers_alone() -> None:
    encoder, text = nn.Sequential(image_encoder(24), nn.Dropout(0.5)), bert()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    DualEncoder(encoder, text)  # without heads
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_causal_model_is_read_at_its_last_token(side: str) -> None:
    torch.manual_seed(0)
    gpt = GPT2Model(GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=2, n_positions=12)).eval()
    model = DualEncoder(image_encoder(), gpt, embed_dim=24).eval()
    ids, mask = (IDS, MASK) if side == "right" else (IDS.flip(1), MASK.flip(1))
    hidden = gpt(input_ids=ids, attention_mask=mask).last_hidden_state
    last = [3, 2, 5] if side == "right" else [5, 5, 5]
    features = model.encode_text({"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(features, hidden[torch.arange(3), last])
    assert not torch.allclose(features[0], features[1]), "the first token is the same in all captions"
    llama = LlamaConfig(vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    assert DualEncoder(image_encoder(), LlamaModel(llama)).pools_last_token
    assert not DualEncoder(image_encoder(), bert()).pools_last_token
    assert not DualEncoder(image_encoder(), gpt, average_word_embeddings=True).pools_last_token


def test_siglips_text_tower_attends_to_its_padding() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    siglip = SiglipTextModel(SiglipTextConfig(vocab_size=50, max_position_embeddings=6, pad_token_id=0, **sizes)).eval()
    model = DualEncoder(image_encoder(), siglip, embed_dim=24).eval()
    expected = siglip(input_ids=IDS).pooler_output
    torch.testing.assert_close(model.encode_text(IDS), expected)
    torch.testing.assert_close(model.encode_text({"input_ids": IDS, "attention_mask": MASK}), expected)


def test_unsupported_encoders_raise() -> None:
    with pytest.raises(ModelError, match=r"one vector per image(.|\n)*shape \(2, 3, 50176\)"):
        DualEncoder(nn.Flatten(2), bert())
    with pytest.raises(ModelError, match=r"one vector per image(.|\n)*dict, in a dictionary of a, b"):
        DualEncoder(Outputs(lambda features, training: {"a": features, "b": features}), bert())
    with pytest.raises(ModelError, match=r"150,528 wide(.|\n)*not pooled(.|\n)*at most 8,192(.|\n)*AdaptiveAvgPool2d"):
        DualEncoder(nn.Flatten(), bert())
    with pytest.raises(ModelError, match=r"10 or 5 wide(.|\n)*another width in training"):
        DualEncoder(Outputs(lambda features, training: features[:, :5] if training else features), bert())
    with pytest.raises(ModelError, match=r"cannot encode an image in training mode(.|\n)*ZeroDivisionError"):
        DualEncoder(Outputs(lambda features, training: features / (1 // (not training))), bert())
    with pytest.raises(ModelError, match=r"cannot encode an image(.|\n)*image_size"):
        DualEncoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8)), bert())
    assert DualEncoder(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8)), bert(), image_size=32)
    with pytest.raises(ModelError, match=r"text encoder is not supported(.|\n)*Linear"):
        DualEncoder(image_encoder(), nn.Linear(2, 2))
    t5 = T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match=r"text encoder is not supported(.|\n)*T5Model"):
        DualEncoder(image_encoder(), t5)
