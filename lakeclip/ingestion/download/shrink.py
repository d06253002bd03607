"""Shrink downloaded images; images are never enlarged."""

from __future__ import annotations

import io
import math

from PIL import Image, ImageOps

from lakeclip.ingestion.download.options import Resize
from lakeclip.lake.images import check_image
from lakeclip.lake.pillow import LoadedImage, open_image, quiet, rawmode_of
from lakeclip.lake.rgb import to_rgb

#: JPEG quality of shrunk images.
QUALITY = 95

_ORIENTATION = 0x0112


def check_and_shrink(data: bytes, size: int | None, resize: Resize) -> bytes | str:
    """Validate a downloaded image and shrink it if it is too large; return the reason if it is not a valid image.

    A small enough image stays as it is, byte for byte. A larger one becomes an upright JPEG without metadata, on a
    white background if it is transparent (as in training). Grey images of more than 8 bits are not shrunk.

    Args:
        data: content of the file.
        size: size in pixels; None to leave every image as it is.
        resize: the side that `size` measures; see `DownloadOptions.resize`.
    """
    info = check_image(data)
    if isinstance(info, str):
        return info
    if size is None or not _is_larger(info.width, info.height, size, resize):
        return data
    try:
        with quiet():
            return _shrink(data, size, resize)
    except Exception as error:  # Pillow's decoders raise many kinds of errors on invalid data
        return f"broken image: {' '.join(str(error).split())[:120] or type(error).__name__}"


def _is_larger(width: int, height: int, size: int, resize: Resize) -> bool:
    if resize == "crop":
        return width != height or width > size
    return (min if resize == "shorter" else max)(width, height) > size


def _shrink(data: bytes, size: int, resize: Resize) -> bytes:
    image = open_image(data)
    if image.mode.startswith(("I", "F")):
        return data
    scale = min(1.0, size / (max if resize == "longer" else min)(image.size))
    # Decode a JPEG at 1/2, 1/4 or 1/8 of its size if that is still large enough.
    image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    rawmode = rawmode_of(image)
    image.load()
    is_grey = image.mode == "L" and "transparency" not in image.info
    shrunk = image if is_grey else to_rgb(LoadedImage(image, rawmode, data))
    shrunk.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    shrunk = ImageOps.exif_transpose(shrunk)
    scale = min(1.0, size / (max if resize == "longer" else min)(shrunk.size))
    width, height = (max(1, round(side * scale)) for side in shrunk.size)
    shrunk = shrunk.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        shrunk = shrunk.crop((left, top, left + side, top + side))
    buffer = io.BytesIO()
    shrunk.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
