"""Examples of retrieval to look at: captions with the images they find, and images with the captions they find."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lakeclip.data.decode import decode_image
from lakeclip.data.transforms import EvalTransform
from lakeclip.errors import DataError
from lakeclip.evaluation.encode import encode_images, encode_texts
from lakeclip.evaluation.retrieval import LEVEL
from lakeclip.lake.rows import RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: What each query finds, best first.
HITS = 5

#: Longer side of a picture in the gallery, in pixels: sharp on a dense screen, small in the file.
_THUMBNAIL = 192


@dataclass(frozen=True)
class Picture:
    """A small picture, encoded, and the caption it came with."""

    data: bytes
    media_type: str
    caption: str


@dataclass(frozen=True)
class ImageHit:
    """An image that a caption found."""

    picture: Picture
    similarity: float
    is_right: bool


@dataclass(frozen=True)
class TextHit:
    """A caption that an image found."""

    text: str
    similarity: float
    is_right: bool


@dataclass(frozen=True)
class CaptionQuery:
    """A caption, the images nearest to it, and the rank of its own image (1 is best) among `num_candidates`."""

    caption: str
    hits: tuple[ImageHit, ...]
    rank: int
    num_candidates: int


@dataclass(frozen=True)
class ImageQuery:
    """An image, the captions nearest to it, and the rank of the first of its own among `num_candidates`."""

    picture: Picture
    hits: tuple[TextHit, ...]
    rank: int
    num_candidates: int


@dataclass(frozen=True)
class Gallery:
    """What a model finds, by example: queries drawn without looking at how they do, and where they were drawn from."""

    captions: tuple[CaptionQuery, ...]
    images: tuple[ImageQuery, ...]
    source: str


def retrieval_gallery(
    model: CLIP | DualEncoder,
    tokenize: Tokenize,
    transform: EvalTransform,
    source: RowSource,
    num_captions: int = 8,
    *,
    num_images: int = 4,
    positions: Sequence[int] | None = None,
    match_column: str | None = None,
    max_rows: int = 1000,
    seed: int = 0,
    batch_size: int = 128,
) -> Gallery:
    """Let a model retrieve among rows of a source that are drawn at random.

    A hit is right if an image and a caption are a pair, word for word: a second picture with the caption "a photo of a
    cat" is no mistake. With a `match_column`, images with the same value in it may share their captions.

    Args:
        num_captions, num_images: queries in each direction.
        positions: which of the source's rows to draw from; all by default.
        match_column: whose equal values make two images count as the same thing.
        max_rows: how many rows to retrieve among.
        seed: of the draw.

    Raises:
        LakeclipError: the source cannot be read, or has no captions.
    """
    rng = np.random.default_rng(seed)
    drawn = sorted(rng.permutation(len(source) if positions is None else np.asarray(positions))[:max_rows].tolist())
    images = encode_images(model, source, transform, positions=drawn, batch_size=batch_size)
    # Equal captions are one candidate, or five hits would be five times the same words.
    texts = list(dict.fromkeys(text for captions in images.captions for text in captions))
    if not texts:
        raise DataError(f"{source.path} has no captions to retrieve with", next_step="a lake with a caption column")
    with torch.inference_mode():
        similarity = (images.features @ encode_texts(model, tokenize, texts).T).cpu().numpy()
    labels: Sequence[object] = source.column(match_column) if match_column else range(len(source))
    right = _pairs(images.captions, texts, [labels[position] for position in images.positions])

    def picture(image: int) -> Picture:
        return thumbnail(source.read([images.positions[image]])[0].image, " · ".join(images.captions[image][:2]))

    by_caption = []
    for text in rng.permutation(len(texts))[:num_captions].tolist():
        nearest, rank = _retrieve(similarity[:, text], right[:, text])
        hits = [ImageHit(picture(i), float(similarity[i, text]), bool(right[i, text])) for i in nearest]
        by_caption.append(CaptionQuery(texts[text], tuple(hits), rank, len(images.captions)))
    by_image = []
    asked = np.flatnonzero(right.any(axis=1))
    for image in asked[rng.permutation(len(asked))[:num_images]].tolist():
        nearest, rank = _retrieve(similarity[image], right[image])
        found = [TextHit(texts[t], float(similarity[image, t]), bool(right[image, t])) for t in nearest]
        by_image.append(ImageQuery(picture(image), tuple(found), rank, len(texts)))
    return Gallery(tuple(by_caption), tuple(by_image), source.path)


def thumbnail(data: bytes, caption: str) -> Picture:
    """A picture as it is shown: upright, at most 192 pixels a side; small ones are kept pixel for pixel."""
    image = Image.fromarray(decode_image(data))
    small = max(image.size) <= _THUMBNAIL // 2
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=82)
    return Picture(buffer.getvalue(), "image/png" if small else "image/jpeg", caption)


def _pairs(captions: Sequence[tuple[str, ...]], texts: Sequence[str], labels: Sequence[object]) -> NDArray[np.bool_]:
    """(images, texts): whether they belong together."""
    number = {text: i for i, text in enumerate(texts)}
    texts_of: dict[object, set[int]] = {}
    for own, label in zip(captions, labels, strict=True):
        texts_of.setdefault(label, set()).update(number[text] for text in own)
    pairs = np.zeros((len(captions), len(texts)), dtype=np.bool_)
    for row, own, label in zip(pairs, captions, labels, strict=True):
        row[[*texts_of[label], *(number[text] for text in own)]] = True
    return pairs


def _retrieve(similarity: NDArray[np.float32], right: NDArray[np.bool_]) -> tuple[list[int], int]:
    """The nearest candidates, and the rank of the first right one."""
    nearest = np.argsort(-similarity, kind="stable")[:HITS].tolist()
    best = similarity[right].max()
    return nearest, 1 + int((similarity > best + LEVEL).sum())
