"""CLIP (Radford et al. 2021, arXiv 2103.00020): an image tower and a text tower with a shared embedding space.

The parameters have the names and layout of OpenAI's released models, so that weights can be exchanged both ways.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lakeclip.config.schema import IMAGE_MEAN as IMAGE_MEAN
from lakeclip.config.schema import IMAGE_STD as IMAGE_STD
from lakeclip.config.schema import ModelConfig
from lakeclip.errors import ModelError
from lakeclip.models.resnet import ModifiedResNet
from lakeclip.models.text_transformer import Packed, TextTransformer, find_ends, pack_captions, whole_captions
from lakeclip.models.transformer import BlockSettings, LayerNorm
from lakeclip.models.vision_transformer import HEAD_WIDTH, VisionTransformer

#: The initial temperature is 0.07 (section 2.5); the logits are multiplied by its inverse, learned as a logarithm.
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


class CLIP(nn.Module):
    """A CLIP model of the paper's architecture.

    A new model has float32 weights, initialized as in OpenAI's code. The text tower's weights may be converted to
    bfloat16 while `visual` and `logit_scale` stay float32: each tower computes in the dtype of its weights, or in
    autocast's.

    Args:
        config: the model's sizes.
        scalars: initial values of the scalars that the loss learns, by name, `logit_scale` among them.

    Attributes:
        config: the model's sizes.
        logit_scale: logarithm of the inverse temperature, learned.
        logit_bias: learned bias of the sigmoid objective; otherwise None, and absent from the state dict.
        scalars: all learned scalars by name.

    Raises:
        ModelError: no model can have these sizes.
    """

    image_mean: Tensor
    image_std: Tensor
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, *, scalars: Mapping[str, float] | None = None) -> None:
        super().__init__()
        if problems := size_problems(config):
            raise ModelError("no model can have these sizes", found="; ".join(problems))
        self.config = config
        self.visual = _image_tower(config)
        self.transformer = TextTransformer(
            config.transformer_width,
            config.transformer_layers,
            config.transformer_heads,
            causal=config.causal,
            settings=BlockSettings(
                config.text_activation or config.activation, config.transformer_mlp_width, config.layer_norm_eps
            ),
        )
        self.token_embedding = nn.Embedding(config.vocab_size, config.transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.transformer_width))
        self.ln_final = LayerNorm(config.transformer_width, eps=config.layer_norm_eps)
        self.text_projection: nn.Parameter | nn.Linear | None = None
        if config.text_projection == "matrix":
            self.text_projection = nn.Parameter(torch.empty(config.transformer_width, config.embed_dim))
        elif config.text_projection == "linear":
            self.text_projection = nn.Linear(config.transformer_width, config.embed_dim)
        initial = {"logit_scale": INITIAL_LOGIT_SCALE} | dict(scalars or {})
        self._scalar_names = tuple(initial)
        for name, value in initial.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(float(value))))
        if "logit_bias" not in initial:
            self.register_parameter("logit_bias", None)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if isinstance(self.text_projection, nn.Parameter):
            nn.init.normal_(self.text_projection, std=config.transformer_width**-0.5)
        self.register_buffer("image_mean", torch.tensor(config.image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(config.image_std), persistent=False)

    @property
    def scalars(self) -> dict[str, nn.Parameter]:
        """The learned scalars of the loss by name."""
        return {name: getattr(self, name) for name in self._scalar_names}

    def encode_image(self, images: Num[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Encode images to features, not scaled to unit length.

        Args:
            images: uint8 pixels, which are normalised here, or floating point, which must be normalised already. In
                training they may be smaller than the model's resolution, in multiples of the patch size (32 pixels for
                a ResNet).

        Raises:
            ModelError: the images do not have the model's shape.
        """
        side, cell = self.config.image_resolution, self.config.vision_patch_size or 32
        sides = (*range(cell, side, cell), side) if self.training else (side,)
        square = images.ndim == 4 and images.shape[1:] == (3, images.shape[2], images.shape[2])
        if not square or images.shape[2] not in sides:
            allowed = f"(batch, 3, {side}, {side})" + (f", or smaller by multiples of {cell}" if self.training else "")
            raise ModelError("the images do not fit the model", found=_shape(images), allowed=allowed)
        if images.dtype == torch.uint8:
            images = normalize_images(images, self.image_mean, self.image_std, self.visual.conv1.weight.dtype)
        features: Tensor = self.visual(images)
        return features

    def encode_text(self, ids: Int[Tensor, "batch context"]) -> Float[Tensor, "batch embed"]:
        """Encode texts to features, not scaled to unit length.

        The feature of a text is that of its end-of-text token, which has the highest id; or as the configuration says.

        Args:
            ids: token ids. In a causal model, those after the end of text are ignored, so the padding may have any
                value. A model that attends to padding gets as much as it was trained with.

        Raises:
            ModelError: the ids are not (batch, context), or longer than the model's context.
        """
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.context_length:
            allowed = f"(batch, context) with at most {self.config.context_length} tokens"
            raise ModelError("the token ids do not fit the model", found=_shape(ids), allowed=allowed)
        packed = self._pack(ids)
        tokens = _embed_tokens(self.token_embedding, packed.ids) + packed.positions(self.positional_embedding)
        stream = _cast_for_autocast(tokens.to(self.token_embedding.weight.dtype))
        feature: Tensor = self.ln_final(self.transformer(stream, packed.groups, packed.ends))[packed.inverse_order]
        if isinstance(self.text_projection, nn.Linear):
            feature = self.text_projection(feature)
        elif self.text_projection is not None:
            feature = feature @ self.text_projection
        return feature

    def _pack(self, ids: Int[Tensor, "batch context"]) -> Packed:
        """Arrange captions for the text tower; a model that does not read at the end of text needs their padding."""
        config = self.config
        if config.ignores_padding:
            return pack_captions(ids, config.end_token)
        ids = F.pad(ids, (0, config.context_length - ids.shape[1]), value=config.pad_token)
        if config.text_pool == "eot":
            return whole_captions(ids, find_ends(ids, config.end_token))
        position = 0 if config.text_pool == "first" else config.context_length - 1
        return whole_captions(ids, torch.full((ids.shape[0],), position, device=ids.device))

    def forward(
        self, images: Num[Tensor, "images 3 height width"], ids: Int[Tensor, "texts context"]
    ) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "texts images"]]:
        """Return the logits of each image over the texts, and of each text over the images."""
        logits, _ = cosine_logits(self.encode_image(images), self.encode_text(ids), self.logit_scale)
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.T


def cosine_logits(
    image_features: Float[Tensor, "images embed"],
    text_features: Float[Tensor, "texts embed"],
    logit_scale: Float[Tensor, ""],
) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "texts images"]]:
    """Return cosine similarities times exp(logit_scale), per image and per text (figure 3 of the paper)."""
    dtype = torch.promote_types(image_features.dtype, text_features.dtype)
    images, texts = (F.normalize(features.to(dtype), dim=-1) for features in (image_features, text_features))
    logits = logit_scale.exp() * images @ texts.T
    return logits, logits.T


def l2_normalize(features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch embed"]:
    """Scale features to unit length, in float32 or better: half precision has too few digits for the division."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def normalize_images(
    images: UInt8[Tensor, "batch 3 height width"],
    mean: Float[Tensor, "3"],
    std: Float[Tensor, "3"],
    dtype: torch.dtype,
) -> Float[Tensor, "batch 3 height width"]:
    """Convert pixels 0…255 to (pixel / 255 - mean) / std, on the images' device.

    Args:
        mean, std: per channel (red, green, blue), in 0…1, on the same device.
        dtype: dtype of the result.
    """
    work = torch.promote_types(dtype, torch.float32)
    scale, shift = 1 / (255 * std.to(work)), -mean.to(work) / std.to(work)
    # In place on the copy that the cast makes, which is three times as fast on a CPU as allocating new tensors.
    return images.to(work).mul_(scale[:, None, None]).add_(shift[:, None, None]).to(dtype)


#: Sizes, each at least 1 unless it is None.
_SIZES = (
    *("embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size", "context_length"),
    *("vocab_size", "transformer_width", "transformer_heads", "transformer_layers"),
    *("vision_heads", "vision_mlp_width", "transformer_mlp_width"),
)


def size_problems(config: ModelConfig) -> list[str]:
    """Return the reasons why no model can have these sizes, each as "field: value; what is allowed"."""
    layers = config.vision_layers
    sizes = {name: getattr(config, name) for name in _SIZES}
    sizes["vision_layers"] = layers if isinstance(layers, int) else min(layers, default=0)
    too_small = [f"{name}: {size}; at least 1" for name, size in sizes.items() if size is not None and size < 1]
    if too_small:
        return too_small

    image = _resnet_problems(config) if config.vision_patch_size is None else _vision_transformer_problems(config)
    return image + _text_problems(config) + _number_problems(config)


def _vision_transformer_problems(config: ModelConfig) -> list[str]:
    assert config.vision_patch_size is not None
    problems = []
    if not isinstance(config.vision_layers, int):
        problems.append(
            f"vision_layers: {config.vision_layers}; one number of blocks, because vision_patch_size is set"
        )
    if config.vision_heads is None and config.vision_width % HEAD_WIDTH:
        problems.append(f"vision_width: {config.vision_width}; a multiple of {HEAD_WIDTH}, the width of a head")
    if config.vision_heads is not None and config.vision_width % config.vision_heads:
        problems.append(f"vision_heads: {config.vision_heads}; a divisor of vision_width, {config.vision_width}")
    # SigLIP's largest model has images of 384 pixels and patches of 14, and leaves the rest unused.
    rest = config.image_resolution % config.vision_patch_size if config.vision_class_token else 0
    if rest or config.image_resolution < config.vision_patch_size:
        allowed = f"a multiple of vision_patch_size, {config.vision_patch_size}"
        problems.append(f"image_resolution: {config.image_resolution}; {allowed}")
    if config.vision_pool == "class" and not config.vision_class_token:
        problems.append("vision_pool: class; average or map, because there is no class token")
    if config.vision_projection == "none" and config.vision_width != config.embed_dim:
        problems.append(f"vision_projection: none; matrix, because vision_width is not embed_dim, {config.embed_dim}")
    return problems


#: Settings of vision transformers, which a ResNet has not.
_TRANSFORMER_SETTINGS = (
    *("vision_heads", "vision_mlp_width", "vision_pool", "vision_class_token", "vision_patch_bias"),
    *("ln_pre", "vision_projection"),
)
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}


def _resnet_problems(config: ModelConfig) -> list[str]:
    layers, problems = config.vision_layers, []
    if isinstance(layers, int) or len(layers) != 4:
        problems.append(f"vision_layers: {layers}; four numbers of bottlenecks, because vision_patch_size is null")
    if config.vision_width % 2:
        problems.append(f"vision_width: {config.vision_width}; an even number, because the stem starts with half of it")
    if config.image_resolution % 32:
        problems.append(f"image_resolution: {config.image_resolution}; a multiple of 32, for a ResNet")
    for name in _TRANSFORMER_SETTINGS:
        if (value := getattr(config, name)) != _DEFAULTS[name]:
            problems.append(f"{name}: {value}; leave it out, because vision_patch_size is null and the tower a ResNet")
    return problems


def _text_problems(config: ModelConfig) -> list[str]:
    problems = []
    if config.transformer_width % config.transformer_heads:
        allowed = f"a divisor of transformer_width, {config.transformer_width}"
        problems.append(f"transformer_heads: {config.transformer_heads}; {allowed}")
    if config.text_pool == "first" and config.causal:
        problems.append("text_pool: first; eot or last, because in a causal tower the first token sees no other")
    if config.text_projection == "none" and config.transformer_width != config.embed_dim:
        allowed = f"matrix or linear, because transformer_width is not embed_dim, {config.embed_dim}"
        problems.append(f"text_projection: none; {allowed}")
    for name in ("end_token", "pad_token"):
        token = getattr(config, name)
        if token is not None and not 0 <= token < config.vocab_size:
            problems.append(f"{name}: {token}; an id below vocab_size, {config.vocab_size}")
    return problems


def _number_problems(config: ModelConfig) -> list[str]:
    problems = []
    if not config.layer_norm_eps > 0:
        problems.append(f"layer_norm_eps: {config.layer_norm_eps}; above 0")
    if not all(0 <= value <= 1 for value in config.image_mean):
        problems.append(f"image_mean: {list(config.image_mean)}; three numbers from 0 to 1")
    if not all(value > 0 for value in config.image_std):
        problems.append(f"image_std: {list(config.image_std)}; three numbers above 0")
    return problems


def _image_tower(config: ModelConfig) -> VisionTransformer | ModifiedResNet:
    if isinstance(config.vision_layers, int):
        assert config.vision_patch_size is not None, "checked by size_problems"
        return VisionTransformer(
            resolution=config.image_resolution,
            patch_size=config.vision_patch_size,
            width=config.vision_width,
            layers=config.vision_layers,
            embed_dim=config.embed_dim,
            heads=config.vision_heads,
            settings=BlockSettings(config.activation, config.vision_mlp_width, config.layer_norm_eps),
            pool=config.vision_pool,
            class_token=config.vision_class_token,
            patch_bias=config.vision_patch_bias,
            ln_pre=config.ln_pre,
            projection=config.vision_projection == "matrix",
        )
    return ModifiedResNet(
        resolution=config.image_resolution,
        layers=config.vision_layers,
        width=config.vision_width,
        embed_dim=config.embed_dim,
    )


def _embed_tokens(table: nn.Embedding, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
    """Look up token embeddings; return float32 rows for a table in half precision.

    The gradients of all occurrences of a token are then summed in float32 too. Summed in bfloat16 on a CPU, the
    gradient of a token that is in each of 2,048 captions is a third too small, because each addend is below the
    precision of the sum.
    """
    if table.weight.dtype not in (torch.float16, torch.bfloat16):
        rows: Tensor = table(ids)
        return rows
    used, index = torch.unique(ids, return_inverse=True)
    return F.embedding(index, table(used).float())


def _cast_for_autocast(x: Tensor) -> Tensor:
    """Cast the residual stream to autocast's dtype; an embedding lookup is not autocast and would leave it float32."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(str(size) for size in tensor.shape)})"
