"""CLIP from any image encoder and any text encoder, pretrained or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from lakeclip.errors import ModelError
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD, INITIAL_LOGIT_SCALE, cosine_logits, normalize_images


class CLIPText(nn.Module):
    """The text tower of a CLIP as a module: token ids (batch, context) → features (batch, embed).

    Args:
        model: the CLIP. It is modified: its image tower, logit scale and bias are deleted.
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        del model.visual, model.logit_scale, model.logit_bias
        self.clip = model

    def forward(self, ids: Int[Tensor, "batch context"]) -> Float[Tensor, "batch embed"]:
        return self.clip.encode_text(ids)


class DualEncoder(nn.Module):
    """Image encoder and text encoder with a shared embedding space and the methods of `CLIP`.

    An encoder whose features are not `embed_dim` wide gets a linear head without bias. A pooler whose output is not
    used is frozen, so that every trainable parameter gets a gradient.

    Args:
        image_encoder: any module that maps (batch, 3, height, width) to (batch, dim).
        text_encoder: any Hugging Face `AutoModel` that encodes text, or a `CLIPText`.
        embed_dim: width of the shared space. Default: the text encoder's, so that only the images may need a head.
        average_word_embeddings: use the mean of the last hidden states under the attention mask as the text feature.
            Otherwise it is the pooled output, or the first token's hidden state if the model has none.
        image_dim: width of the image encoder's features. Default: measured by encoding one black image.
        image_size: side of that image in pixels.
        image_mean, image_std: statistics for normalising uint8 images; use those of the image encoder's training.

    Raises:
        ModelError: an encoder is of an unsupported kind.
    """

    image_mean: Tensor
    image_std: Tensor
    logit_bias: None = None

    @property
    def scalars(self) -> dict[str, nn.Parameter]:
        """The learned scalars of the loss by name."""
        return {"logit_scale": self.logit_scale}

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        embed_dim: int | None = None,
        average_word_embeddings: bool = False,
        image_dim: int | None = None,
        image_size: int = 224,
        image_mean: tuple[float, float, float] = IMAGE_MEAN,
        image_std: tuple[float, float, float] = IMAGE_STD,
    ) -> None:
        super().__init__()
        text_dim, self.pad_token = _text_sizes(text_encoder)
        embed_dim = embed_dim or text_dim
        image_dim = image_dim or _probe_image_dim(image_encoder, image_size)
        self.embed_dim, self.image_dim = embed_dim, image_dim
        self.average_word_embeddings = average_word_embeddings
        self.image_size = image_size
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_projection = _head(image_dim, embed_dim)
        self.text_projection = _head(text_dim, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.register_buffer("image_mean", torch.tensor(image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std), persistent=False)
        pooler = getattr(text_encoder, "pooler", None)
        if average_word_embeddings and isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)

    def encode_image(self, images: Num[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Encode images to features, not scaled to unit length.

        Args:
            images: uint8 pixels, which are normalised here, or floating point, which must be normalised already.
        """
        if images.dtype == torch.uint8:
            dtype = next(self.image_encoder.parameters(), self.image_mean).dtype
            images = normalize_images(images, self.image_mean, self.image_std, dtype)
        features: Tensor = self.image_projection(self.image_encoder(images))
        return features

    def encode_text(self, texts: Int[Tensor, "batch context"] | Mapping[str, Tensor]) -> Float[Tensor, "batch embed"]:
        """Encode texts to features, not scaled to unit length.

        Args:
            texts: the output of the encoder's own tokenizer (a `BatchEncoding`, or a dict of tensors), or token ids, in
                which the encoder's padding token is masked.
        """
        if isinstance(self.text_encoder, CLIPText):
            projected: Tensor = self.text_projection(self.text_encoder(texts))
            return projected
        inputs = {"input_ids": texts} if isinstance(texts, Tensor) else dict(texts)
        mask = inputs.get("attention_mask")
        if mask is None:
            ids = inputs["input_ids"]
            mask = torch.ones_like(ids) if self.pad_token is None else (ids != self.pad_token).long()
            inputs["attention_mask"] = mask
        outputs = self.text_encoder(**inputs)
        features: Tensor = self.text_projection(self._pool(outputs, mask))
        return features

    def forward(
        self,
        images: Num[Tensor, "images 3 height width"],
        texts: Int[Tensor, "texts context"] | Mapping[str, Tensor],
    ) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "texts images"]]:
        """Return the logits of each image over the texts, and of each text over the images."""
        return cosine_logits(self.encode_image(images), self.encode_text(texts), self.logit_scale)

    def _pool(self, outputs: Any, mask: Int[Tensor, "batch context"]) -> Float[Tensor, "batch dim"]:
        hidden: Tensor = outputs.last_hidden_state
        if self.average_word_embeddings:
            weight = mask.to(hidden.dtype)[:, :, None]
            return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        pooled: Tensor | None = getattr(outputs, "pooler_output", None)
        return hidden[:, 0] if pooled is None else pooled


def _head(dim: int, embed_dim: int) -> nn.Module:
    return nn.Identity() if dim == embed_dim else nn.Linear(dim, embed_dim, bias=False)


def _text_sizes(text_encoder: nn.Module) -> tuple[int, int | None]:
    """Return the width of a text model's hidden states and its padding id.

    Raises:
        ModelError: the model is not an encoder of `transformers`.
    """
    if isinstance(text_encoder, CLIPText):
        return text_encoder.clip.config.embed_dim, None
    config = getattr(text_encoder, "config", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int) or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            "this text encoder is not supported",
            found=type(text_encoder).__name__,
            allowed="an encoder of Hugging Face transformers, e.g. AutoModel.from_pretrained of a BERT",
        )
    return width, getattr(config, "pad_token_id", None)


def _probe_image_dim(image_encoder: nn.Module, image_size: int) -> int:
    """Return the width of an image encoder's features, measured on one black image; leave the encoder unchanged.

    Raises:
        ModelError: the encoder fails, or does not return one vector per image.
    """
    training = {module: module.training for module in image_encoder.modules()}
    like = next(image_encoder.parameters(), torch.zeros(()))
    image = torch.zeros(1, 3, image_size, image_size, device=like.device, dtype=like.dtype)
    image_encoder.eval()
    try:
        with torch.no_grad():
            features = image_encoder(image)
    except Exception as error:  # a user's module may raise anything
        raise ModelError(
            "the image encoder cannot encode an image",
            found=f"{type(error).__name__}: {error}",
            allowed=f"a module that maps {tuple(image.shape)} to (1, dim); set image_size to the encoder's input size",
        ) from error
    finally:
        for module, was in training.items():
            module.training = was
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ModelError("the image encoder does not return one vector per image", found=found, allowed="(batch, dim)")
    return int(features.shape[1])
