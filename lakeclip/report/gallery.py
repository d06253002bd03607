"""Examples of retrieval: captions with their nearest images, and images with their nearest captions."""

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
from lakeclip.evaluation.retrieval import TIE_TOLERANCE
from lakeclip.lake.rows import RowSource
from lakeclip.models.clip import CLIP
from lakeclip.models.dual_encoder import DualEncoder
from lakeclip.types import Tokenize

#: Number of hits per query.
NUM_HITS = 5

#: Longer side of a thumbnail in pixels: sharp on a high-density screen, and small in the file.
_THUMBNAIL = 192


@dataclass(frozen=True)
class Picture:
    """An encoded thumbnail, and the caption of its image."""

    data: bytes
    media_type: str
    caption: str


@dataclass(frozen=True)
class ImageHit:
    """An image retrieved for a caption."""

    picture: Picture
    similarity: float
    is_right: bool


@dataclass(frozen=True)
class TextHit:
    """A caption retrieved for an image."""

    text: str
    similarity: float
    is_right: bool


@dataclass(frozen=True)
class CaptionQuery:
    """A caption, its nearest images, and the rank of its own image (1 is best) among `num_candidates`."""

    caption: str
    hits: tuple[ImageHit, ...]
    rank: int
    num_candidates: int


@dataclass(frozen=True)
class ImageQuery:
    """An image, its nearest captions, and the rank of its first own caption among `num_candidates`."""

    picture: Picture
    hits: tuple[TextHit, ...]
    rank: int
    num_candidates: int


@dataclass(frozen=True)
class Gallery:
    """Examples of retrieval: randomly drawn queries with their hits, and a sentence that names the rows."""

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
    """Retrieve among randomly drawn rows of a source.

    A hit is correct if the image has exactly this caption: two images with the caption "a photo of a cat" both match
    it. With a `match_column`, images with the same value in it share their captions.

    Args:
        num_captions, num_images: queries in each direction.
        positions: indices of the source's rows to draw from; all by default.
        match_column: column whose equal values make images share their captions.
        max_rows: number of rows to retrieve among.
        seed: seed of the random draw.

    Raises:
        LakeclipError: the source cannot be read, or has no captions.
    """
    rng = np.random.default_rng(seed)
    drawn = sorted(rng.permutation(len(source) if positions is None else np.asarray(positions))[:max_rows].tolist())
    images = encode_images(model, source, transform, positions=drawn, batch_size=batch_size)
    # Equal captions are one candidate; otherwise all five hits could be the same text.
    texts = list(dict.fromkeys(text for captions in images.captions for text in captions))
    if not texts:
        raise DataError(f"{source.path} has no captions to retrieve with", next_step="use a lake with a caption column")
    with torch.inference_mode():
        similarity = (images.features @ encode_texts(model, tokenize, texts).T).cpu().numpy()
    labels: Sequence[object] = source.column(match_column) if match_column else range(len(source))
    is_match = _match(images.captions, texts, [labels[position] for position in images.positions])

    def picture(image: int) -> Picture:
        return thumbnail(source.read([images.positions[image]])[0].image, " · ".join(images.captions[image][:2]))

    by_caption = []
    for text in rng.permutation(len(texts))[:num_captions].tolist():
        nearest, rank = _retrieve(similarity[:, text], is_match[:, text])
        hits = [ImageHit(picture(i), float(similarity[i, text]), bool(is_match[i, text])) for i in nearest]
        by_caption.append(CaptionQuery(texts[text], tuple(hits), rank, len(images.captions)))
    by_image = []
    captioned = np.flatnonzero(is_match.any(axis=1))
    for image in captioned[rng.permutation(len(captioned))[:num_images]].tolist():
        nearest, rank = _retrieve(similarity[image], is_match[image])
        text_hits = [TextHit(texts[t], float(similarity[image, t]), bool(is_match[image, t])) for t in nearest]
        by_image.append(ImageQuery(picture(image), tuple(text_hits), rank, len(texts)))
    return Gallery(tuple(by_caption), tuple(by_image), source.path)


def thumbnail(data: bytes, caption: str) -> Picture:
    """Make an upright thumbnail of at most 192 pixels a side; small images are stored losslessly."""
    image = Image.fromarray(decode_image(data))
    small = max(image.size) <= _THUMBNAIL // 2
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=82)
    return Picture(buffer.getvalue(), "image/png" if small else "image/jpeg", caption)


def _match(captions: Sequence[tuple[str, ...]], texts: Sequence[str], labels: Sequence[object]) -> NDArray[np.bool_]:
    """Return (images, texts): True where a text is a caption of the image, or of one with the same label."""
    number = {text: i for i, text in enumerate(texts)}
    texts_of: dict[object, set[int]] = {}
    for captions_of_image, label in zip(captions, labels, strict=True):
        texts_of.setdefault(label, set()).update(number[text] for text in captions_of_image)
    is_match = np.zeros((len(captions), len(texts)), dtype=np.bool_)
    for row, captions_of_image, label in zip(is_match, captions, labels, strict=True):
        row[[*texts_of[label], *(number[text] for text in captions_of_image)]] = True
    return is_match


def _retrieve(similarity: NDArray[np.float32], is_match: NDArray[np.bool_]) -> tuple[list[int], int]:
    """Return the nearest candidates, and the rank of the first match."""
    nearest = np.argsort(-similarity, kind="stable")[:NUM_HITS].tolist()
    best = similarity[is_match].max()
    return nearest, 1 + int((similarity > best + TIE_TOLERANCE).sum())
