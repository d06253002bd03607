"""CLIP from any image encoder and any text encoder, pretrained or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from lakeclip.errors import ModelError
from lakeclip.models.clip import CLIP, IMAGE_MEAN, IMAGE_STD, INITIAL_LOGIT_SCALE, cosine_logits, normalize_images

#: Names under which libraries return the pooled features of images in a dictionary, best first.
_FEATURE_NAMES = ("image_embeds", "pooler_output", "features", "out")
#: Limit on the width of features. Wider ones are maps that nobody pooled: their head would be larger than the model.
_MAX_DIM = 8_192
#: Text models that were trained with all captions padded to the same length, and attend to the padding.
READ_PADDING = ("siglip_text_model", "siglip2_text_model")


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
            Otherwise it is the pooled output. If the model has none, it is the first token's hidden state, or in a
            causal model (GPT-2, Llama) that of the last token, which alone has read the caption.
        image_dim: width of the image encoder's features. Default: measured by encoding black images.
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
        model_type = getattr(getattr(text_encoder, "config", None), "model_type", "")
        self.reads_padding = model_type in READ_PADDING
        needs_last = not isinstance(text_encoder, CLIPText) and not average_word_embeddings
        self.pools_last_token = needs_last and _is_causal(text_encoder)
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
        features: Tensor = self.image_projection(image_features(self.image_encoder(images)))
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
            mask = torch.ones_like(ids) if self.pad_token is None else ids.ne(self.pad_token).to(ids.dtype)
        inputs["attention_mask"] = torch.ones_like(mask) if self.reads_padding else mask
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
        if pooled is not None:
            return pooled
        if not self.pools_last_token:
            return hidden[:, 0]
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(dim=1)  # the padding may be on either side
        return hidden[torch.arange(len(hidden), device=hidden.device), last]


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


def image_features(outputs: Any) -> Tensor:
    """Return the features in what an image encoder returned.

    A map (batch, dim, height, width) is averaged over its places. Of a tuple the first part counts, as in GoogLeNet and
    Inception, which return the outputs of further classifiers in training; of a dictionary the pooled output.

    Raises:
        ModelError: there is no tensor of one vector per image in it.
    """
    found = outputs
    if isinstance(found, Mapping):
        names = [name for name in _FEATURE_NAMES if name in found] or list(found)[: len(found) == 1]
        found = found[names[0]] if names else found
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    if isinstance(found, Tensor) and found.ndim == 4:
        found = found.mean(dim=(2, 3))
    if isinstance(found, Tensor) and found.ndim == 2:
        return found
    kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    if isinstance(outputs, Mapping):
        kind += f", in a dictionary of {', '.join(map(str, outputs))}"
    raise ModelError(
        "the image encoder does not return one vector per image",
        found=kind,
        allowed="(batch, dim), or a map (batch, dim, height, width), which is averaged",
        next_step="wrap it in a module that pools its output",
    )


def _probe_image_dim(image_encoder: nn.Module, image_size: int) -> int:
    """Return the width of an image encoder's features, measured on black images in evaluation and in training mode.

    The encoder is left unchanged, and so is PyTorch's generator of random numbers.

    Raises:
        ModelError: the encoder fails, or does not return one vector per image, or its vectors are too wide.
    """
    modes = {module: module.training for module in image_encoder.modules()}
    buffers = {name: buffer.clone() for name, buffer in image_encoder.named_buffers()}
    like = next(image_encoder.parameters(), torch.zeros(()))
    # Two images: batch normalisation in training mode refuses one if it is left with one value.
    images = torch.zeros(2, 3, image_size, image_size, device=like.device, dtype=like.dtype)
    devices = [like.device] if like.device.type == "cuda" else []
    dims: list[int] = []
    try:
        for training in (False, True):
            image_encoder.train(training)
            with torch.no_grad(), torch.random.fork_rng(devices):
                dims.append(image_features(image_encoder(images)).shape[1])
    except ModelError:
        raise
    except Exception as error:  # a user's module may raise anything
        raise ModelError(
            f"the image encoder cannot encode an image{' in training mode' if dims else ''}",
            found=f"{type(error).__name__}: {error}",
            allowed=f"a module that maps {tuple(images.shape)} to (2, dim); set image_size to the encoder's input size",
        ) from error
    finally:
        for module, was in modes.items():
            module.training = was
        for name, buffer in image_encoder.named_buffers():
            buffer.copy_(buffers[name])
    if dims[0] != dims[1] or dims[0] > _MAX_DIM:
        raise ModelError(
            f"the image encoder's features are {' or '.join(f'{dim:,}' for dim in dict.fromkeys(dims))} wide",
            found="another width in training mode" if dims[0] != dims[1] else "a map that is not pooled, probably",
            allowed=f"one width of at most {_MAX_DIM:,}",
            next_step="pool it: nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten())",
        )
    return dims[0]


def _is_causal(text_encoder: nn.Module) -> bool:
    """Return whether a token's hidden state depends on earlier tokens only, as in GPT-2 and Llama.

    This is found by trying it: libraries have no common name for it.
    """
    modes = {module: module.training for module in text_encoder.modules()}
    ids = torch.tensor([[1, 1, 1], [1, 1, 0]], device=next(text_encoder.parameters()).device)
    try:
        text_encoder.eval()
        with torch.no_grad():
            hidden = text_encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    except Exception:  # a user's own module, which needs more than token ids
        return False
    finally:
        for module, was in modes.items():
            module.training = was
    return bool(torch.equal(hidden[0, 0], hidden[1, 0]) and not torch.equal(hidden[0, 2], hidden[1, 2]))
