"""Is this file an image that training can decode later? Asked once, at ingest, so that a lake holds no surprises."""

from __future__ import annotations

import functools
import io
import os
from typing import NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError

#: Images with more pixels than this are refused by their header, before anything is decoded: a few bytes can claim any
#: size. (Pillow's own limit, twice its MAX_IMAGE_PIXELS: half a gigabyte as RGB.)
MAX_PIXELS = 178_956_970
#: Files larger than this are not read at all.
MAX_FILE_BYTES = 512 * 2**20

#: Formats that Pillow lists but only names, hands to another program, or draws rather than decodes.
_NOT_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


class ImageInfo(NamedTuple):
    """What an encoded image is.

    Attributes:
        format: "jpeg", "png", "webp", …
        width: pixels across, as encoded: before EXIF turns it.
        height: pixels down, as encoded.
    """

    format: str
    width: int
    height: int


@functools.cache
def image_suffixes() -> dict[str, str]:
    """Lower-case suffix (".jpg") → Pillow's name of the format, for every picture format that Pillow opens."""
    Image.init()
    known = {**Image.registered_extensions(), ".jfif": "JPEG"}
    return {suffix: kind for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NOT_PICTURES}


def suffix_of(name: str) -> str:
    """A file name's suffix in lower case."""
    return os.path.splitext(name)[1].lower()


def check_image(data: bytes) -> ImageInfo | str:
    """Decode an image as cheaply as finds out whether it is whole: a JPEG at an eighth of its size, the rest in full.

    Returns:
        What it is, or the reason why it cannot be used.
    """
    if not data:
        return "empty file"
    if data.startswith(b"\xff\xd8\xff"):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            if 0 < width * height <= MAX_PIXELS:
                simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
                return ImageInfo("jpeg", width, height)
        except ValueError:
            pass  # CMYK, or something that libjpeg warns of: Pillow has the last word
    try:
        with Image.open(io.BytesIO(data), formats=picture_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.draft("L", (1, 1))
            image.load()
            # An MPO is a JPEG with more behind it.
            kind = "jpeg" if image.format == "MPO" else str(image.format).lower()
            return ImageInfo(kind, width, height) if width and height else "not an image: it has no pixels"
    except Image.DecompressionBombError:
        return f"too large: more than {MAX_PIXELS / 1e6:.0f} million pixels"
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # Pillow's decoders raise whatever bad bytes make them raise
        text = " ".join(str(error).split()) or type(error).__name__
        return f"{'truncated' if 'truncated' in text else 'broken'} image: {text[:120]}"


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded; all others would be drawn, or handed to another program."""
    return tuple(sorted(set(image_suffixes().values())))
