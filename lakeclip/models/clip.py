"""CLIP (Radford et al. 2021, arXiv 2103.00020): an image tower and a text tower that meet in one space.

The parameters are named and laid out as in OpenAI's released models, so that weights travel both ways.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.config.schema import ModelConfig
from lakeclip.errors import ModelError
from lakeclip.models.resnet import ModifiedResNet
from lakeclip.models.text_transformer import TextTransformer, pack
from lakeclip.models.transformer import LayerNorm
from lakeclip.models.vision_transformer import HEAD_WIDTH, VisionTransformer

#: Mean and standard deviation of red, green and blue, in 0…1, that OpenAI's models were trained with.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

#: The initial temperature is 0.07 (section 2.5); the logits are multiplied by its inverse, learned as a logarithm.
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
#: … and where every pair is told on its own (SigLIP: Zhai et al. 2023, arXiv 2303.15343, section 3.2).
SIGMOID_LOGIT_SCALE, SIGMOID_LOGIT_BIAS = math.log(10), -10.0


class CLIP(nn.Module):
    """One model of the paper.

    A new model is float32 with random weights, drawn as OpenAI's code draws them. Its text tower may be made bfloat16,
    all but `logit_scale` and what else is `visual`: a tower computes in the type of its weights, or in autocast's.

    Args:
        config: its sizes.
        sigmoid: it is to be trained with the sigmoid objective, which needs a bias.

    Attributes:
        config: the sizes that it was made from.
        logit_scale: logarithm of the inverse temperature, learned.
        logit_bias: learned with the sigmoid objective; otherwise None, and not in the state dict.

    Raises:
        ModelError: the sizes cannot make a model.
    """

    image_mean: Tensor
    image_std: Tensor

    logit_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, *, sigmoid: bool = False) -> None:
        super().__init__()
        if problems := size_problems(config):
            raise ModelError("these sizes cannot make a model", found="; ".join(problems))
        self.config = config
        self.visual = _image_tower(config)
        self.transformer = TextTransformer(
            config.transformer_width, config.transformer_layers, config.transformer_heads
        )
        self.token_embedding = nn.Embedding(config.vocab_size, config.transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.transformer_width))
        self.ln_final = LayerNorm(config.transformer_width)
        self.text_projection = nn.Parameter(torch.empty(config.transformer_width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(SIGMOID_LOGIT_SCALE if sigmoid else INITIAL_LOGIT_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(SIGMOID_LOGIT_BIAS)) if sigmoid else None
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=config.transformer_width**-0.5)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD), persistent=False)

    def encode_image(self, images: Num[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Image features, not scaled to unit length.

        Args:
            images: uint8 pixels, which are normalised here; or floating point that has been normalised already. In
                training they may be smaller than the model's, on whole patches (32 pixels for a ResNet).
        """
        side, cell = self.config.image_resolution, self.config.vision_patch_size or 32
        sides = range(cell, side + 1, cell) if self.training else [side]
        square = images.ndim == 4 and images.shape[1:] == (3, images.shape[2], images.shape[2])
        if not square or images.shape[2] not in sides:
            allowed = f"(batch, 3, {side}, {side})" + (f", or smaller by multiples of {cell}" if self.training else "")
            raise ModelError("the images do not fit the model", found=_shape(images), allowed=allowed)
        if images.dtype == torch.uint8:
            images = normalize_images(images, self.image_mean, self.image_std, self.visual.conv1.weight.dtype)
        features: Tensor = self.visual(images)
        return features

    def encode_text(self, ids: Int[Tensor, "batch context"]) -> Float[Tensor, "batch embed"]:
        """Text features, not scaled to unit length: those of the end-of-text token, which has the highest id.

        Args:
            ids: token ids. What stands after the end of text is not looked at, so any padding will do.
        """
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.context_length:
            allowed = f"(batch, context) with at most {self.config.context_length} tokens"
            raise ModelError("the token ids do not fit the model", found=_shape(ids), allowed=allowed)
        packed = pack(ids)
        tokens = _look_up(self.token_embedding, packed.ids) + packed.positions(self.positional_embedding)
        stream = _autocast(tokens.to(self.token_embedding.weight.dtype))
        feature: Tensor = self.ln_final(self.transformer(stream, packed.groups, packed.ends))
        return feature[packed.back] @ self.text_projection

    def forward(
        self, images: Num[Tensor, "images 3 height width"], ids: Int[Tensor, "texts context"]
    ) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "texts images"]]:
        """Logits of each image over the texts, and of each text over the images."""
        logits, _ = cosine_logits(self.encode_image(images), self.encode_text(ids), self.logit_scale)
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.T


def cosine_logits(
    image_features: Float[Tensor, "images embed"],
    text_features: Float[Tensor, "texts embed"],
    logit_scale: Float[Tensor, ""],
) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "texts images"]]:
    """Cosine similarities times exp(logit_scale), as seen from the images and from the texts (figure 3)."""
    dtype = torch.promote_types(image_features.dtype, text_features.dtype)
    images, texts = (F.normalize(features.to(dtype), dim=-1) for features in (image_features, text_features))
    logits = logit_scale.exp() * images @ texts.T
    return logits, logits.T


def unit(features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch embed"]:
    """Features scaled to unit length, in float32 or better: half precision has too few digits to divide by a length."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def normalize_images(
    images: UInt8[Tensor, "batch 3 height width"],
    mean: Float[Tensor, "3"],
    std: Float[Tensor, "3"],
    dtype: torch.dtype,
) -> Float[Tensor, "batch 3 height width"]:
    """Pixels 0…255 to (pixel / 255 - mean) / std, on the images' device.

    Args:
        mean, std: of red, green and blue, in 0…1, on the same device.
        dtype: of the result.
    """
    work = torch.promote_types(dtype, torch.float32)
    scale, shift = 1 / (255 * std.to(work)), -mean.to(work) / std.to(work)
    # In place on the copy that the cast makes: three times as fast on a CPU as arithmetic on new tensors.
    return images.to(work).mul_(scale[:, None, None]).add_(shift[:, None, None]).to(dtype)


def size_problems(config: ModelConfig) -> list[str]:
    """Why these sizes cannot make a model, each as "field: value; what is allowed". Empty if they can."""
    layers = config.vision_layers
    sizes = dataclasses.asdict(config)
    sizes["vision_layers"] = layers if isinstance(layers, int) else min(layers, default=0)
    small = [f"{name}: {size}; at least 1" for name, size in sizes.items() if size is not None and size < 1]
    if small:
        return small

    problems = []
    if config.vision_patch_size is not None:
        if not isinstance(layers, int):
            problems.append(f"vision_layers: {layers}; one number of blocks, as there is a vision_patch_size")
        if config.vision_width % HEAD_WIDTH:
            problems.append(f"vision_width: {config.vision_width}; a multiple of {HEAD_WIDTH}, the width of a head")
        if config.image_resolution % config.vision_patch_size:
            allowed = f"a multiple of vision_patch_size, {config.vision_patch_size}"
            problems.append(f"image_resolution: {config.image_resolution}; {allowed}")
    else:
        if isinstance(layers, int) or len(layers) != 4:
            problems.append(f"vision_layers: {layers}; four numbers of bottlenecks, as there is no vision_patch_size")
        if config.vision_width % 2:
            problems.append(f"vision_width: {config.vision_width}; an even number, as the stem starts with half of it")
        if config.image_resolution % 32:
            problems.append(f"image_resolution: {config.image_resolution}; a multiple of 32, for a ResNet")
    if config.transformer_width % config.transformer_heads:
        allowed = f"a divisor of transformer_width, {config.transformer_width}"
        problems.append(f"transformer_heads: {config.transformer_heads}; {allowed}")
    return problems


def _image_tower(config: ModelConfig) -> VisionTransformer | ModifiedResNet:
    if isinstance(config.vision_layers, int):
        assert config.vision_patch_size is not None, "size_problems has seen to it"
        return VisionTransformer(
            resolution=config.image_resolution,
            patch_size=config.vision_patch_size,
            width=config.vision_width,
            layers=config.vision_layers,
            embed_dim=config.embed_dim,
        )
    return ModifiedResNet(
        resolution=config.image_resolution,
        layers=config.vision_layers,
        width=config.vision_width,
        embed_dim=config.embed_dim,
    )


def _look_up(table: nn.Embedding, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
    """Rows of a table; those of a half precision one in float32.

    So the gradients of a token's many uses are summed in float32 too. Summed in bfloat16 on a CPU, the gradient of a
    token that is in each of 2,048 captions is a third too small: what is added is less than half a digit of the sum.
    """
    if table.weight.dtype not in (torch.float16, torch.bfloat16):
        rows: Tensor = table(ids)
        return rows
    used, place = torch.unique(ids, return_inverse=True)
    return F.embedding(place, table(used).float())


def _autocast(x: Tensor) -> Tensor:
    """Under autocast the residual stream is half precision too; the embedding, a look-up, would leave it float32."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(str(size) for size in tensor.shape)})"
