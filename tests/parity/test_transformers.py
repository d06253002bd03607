"""Tests that transformers' `CLIPModel` computes the same features from the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from lakeclip.config.schema import ModelConfig
from lakeclip.models.clip import CLIP

CONFIG = ModelConfig(
    embed_dim=48,
    image_resolution=64,
    vision_layers=3,
    vision_width=128,
    vision_patch_size=16,
    context_length=20,
    vocab_size=300,
    transformer_width=96,
    transformer_heads=3,
    transformer_layers=4,
)

#: Our parameter name → theirs. Weights of their linear layers are transposed.
NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",  # transposed
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",  # transposed
}
TRANSPOSED = ("text_projection", "visual.proj")
BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def to_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of an OpenAI state dict to those of transformers."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tower, in_block, rest = name.partition("transformer.resblocks.")
        if not in_block:
            module, _, kind = name.rpartition(".")
            if name in NAMES:
                theirs[NAMES[name]] = tensor.T if name in TRANSPOSED else tensor
            else:
                theirs[f"{NAMES[module]}.{kind}"] = tensor
            continue
        layer, _, inner = rest.partition(".")
        prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{layer}"
        if inner.startswith("attn.in_proj_"):
            kind = inner.removeprefix("attn.in_proj_")
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[f"{prefix}.self_attn.{projection}_proj.{kind}"] = part
        else:
            module, _, kind = inner.rpartition(".")
            theirs[f"{prefix}.{BLOCK[module]}.{kind}"] = tensor
    return theirs


@pytest.fixture(scope="module")
def models() -> tuple[CLIP, CLIPModel]:
    torch.manual_seed(0)
    ours = CLIP(CONFIG).eval()
    for parameter in ours.parameters():  # gains and biases too, because ones and zeros would hide errors
        parameter.data += 0.02 * torch.randn_like(parameter)
    tower = {"hidden_act": "quick_gelu", "projection_dim": 48}
    text = {"vocab_size": 300, "max_position_embeddings": 20, "eos_token_id": 299, "bos_token_id": 298}
    text |= {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}
    vision = {"image_size": 64, "patch_size": 16}
    vision |= {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512}
    theirs = CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=48)).eval()
    theirs.load_state_dict(to_transformers_names(ours.state_dict()), strict=True)
    return ours, theirs


@torch.no_grad()
def test_image_features(models: tuple[CLIP, CLIPModel]) -> None:
    ours, theirs = models
    images = torch.randn(4, 3, 64, 64)
    expected = theirs.visual_projection(theirs.vision_model(pixel_values=images).pooler_output)
    torch.testing.assert_close(ours.encode_image(images), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("context", [20, 11])
def test_text_features(models: tuple[CLIP, CLIPModel], context: int) -> None:
    ours, theirs = models
    ids = torch.randint(1, 298, (5, context))
    for row, length in zip(ids, (3, 11, 7, 11, 2), strict=True):
        row[length - 1] = 299
        row[length:] = 0
    expected = theirs.text_projection(theirs.text_model(input_ids=ids).pooler_output)
    torch.testing.assert_close(ours.encode_text(ids), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits(models: tuple[CLIP, CLIPModel]) -> None:
    ours, theirs = models
    images, ids = torch.randn(2, 3, 64, 64), torch.tensor([[298, 5, 299, 0], [298, 7, 8, 299]])
    expected = theirs(input_ids=ids, pixel_values=images)
    per_image, per_text = ours(images, ids)
    torch.testing.assert_close(per_image, expected.logits_per_image, rtol=0, atol=1e-4)
    torch.testing.assert_close(per_text, expected.logits_per_text, rtol=0, atol=1e-4)
