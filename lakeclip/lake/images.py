"""Checks, at ingest time, that a file is an image that training can decode."""

from __future__ import annotations

import os
from typing import NamedTuple

import simplejpeg
from PIL import Image, UnidentifiedImageError

from lakeclip.lake.pillow import MAX_PIXELS, ImageTooLargeError, explain, load_image, open_image, quiet
from lakeclip.lake.pillow import image_formats as image_formats
from lakeclip.lake.pillow import image_suffixes as image_suffixes
from lakeclip.lake.rgb import to_rgb

#: Larger files are not read.
MAX_FILE_BYTES = 512 * 2**20

#: A progressive JPEG of a few kilobytes can have thousands of scans, each of which takes as long as a whole image.
_MAX_SCANS = 500

#: Colour modes that are always converted to RGB. Images of others are converted when they are checked.
_COMMON_MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F"}
)


class ImageInfo(NamedTuple):
    """Format and size of an encoded image.

    Attributes:
        format: "jpeg", "png", "webp", …
        width: pixels, as encoded: before the EXIF orientation is applied.
        height: pixels, as encoded.
    """

    format: str
    width: int
    height: int


def suffix_of(name: str) -> str:
    """Return a file name's suffix in lower case."""
    return os.path.splitext(name)[1].lower()


def check_image(data: bytes) -> ImageInfo | str:
    """Check an image by decoding it: a JPEG at an eighth of its size, which is cheaper, other formats in full.

    Returns:
        Its format and size, or the reason why it cannot be used.
    """
    if not data:
        return "empty file"
    if data.startswith(b"\xff\xd8\xff"):
        if (num_scans := data.count(b"\xff\xda")) > _MAX_SCANS:
            return f"too many scans: {num_scans:,}, at most {_MAX_SCANS} are decoded"
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            if 0 < width * height <= MAX_PIXELS:
                simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
                return ImageInfo("jpeg", width, height)
        except ValueError:
            pass  # CMYK, or a warning of libjpeg: Pillow decides
    try:
        with quiet(), open_image(data) as image:
            kind = _format_of(image)
            size = image.size
            if image.draft("L", (1, 1)) is None:
                image.load()
                size = image.size  # some formats only know it now
            else:
                image.load()
            if image.mode not in _COMMON_MODES:
                to_rgb(load_image(data))
            return ImageInfo(kind, *size) if all(size) else "not an image: it has no pixels"
    except Exception as error:  # Pillow's decoders raise any exception on bad bytes
        return _reason(error, data)


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    explained = explain(error, data)
    if isinstance(explained, ImageTooLargeError):
        return f"too large: more than {explained.allowed}"
    text = " ".join(explained.found.split())
    return f"{'truncated' if 'truncated' in text else 'broken'} image: {text[:120]}"


def read_header(data: bytes) -> ImageInfo | None:
    """Read the format and the size of an image without decoding it; return None if it is not an image."""
    try:
        with quiet(), open_image(data) as image:
            return ImageInfo(_format_of(image), *image.size)
    except Exception:  # Pillow's readers raise any exception on bad bytes
        return None


def _format_of(image: Image.Image) -> str:
    # An MPO is a JPEG followed by further images.
    return "jpeg" if image.format == "MPO" else str(image.format).lower()
