"""Pictures made smaller on their way into a lake, and never larger."""

from __future__ import annotations

import io
import math

from PIL import Image, ImageOps

from lakeclip.lake.download.options import Resize
from lakeclip.lake.sources.images import check_image

#: JPEG's, of what is encoded anew.
QUALITY = 95


def check_and_shrink(data: bytes, size: int | None, how: Resize) -> bytes | str:
    """A downloaded file as it goes into the lake, or the reason why it cannot: what it is, its bytes say.

    What is small enough stays as it is, byte for byte. What is not becomes an upright JPEG without metadata, its
    transparency laid on white as it is for training. Deep greys (more than 8 bits) stay as they are, too.

    Args:
        data: the file.
        size: pixels; None to leave every image as it is.
        how: what is to be so long.
    """
    info = check_image(data)
    if isinstance(info, str):
        return info
    if size is None or not _is_larger(info.width, info.height, size, how):
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            return data if image.mode.startswith(("I", "F")) else _shrink(image, size, how)
    except Exception as error:  # Pillow's decoders raise whatever bad bytes make them raise
        return f"broken image: {' '.join(str(error).split())[:120] or type(error).__name__}"


def _is_larger(width: int, height: int, size: int, how: Resize) -> bool:
    if how == "crop":
        return width != height or width > size
    return (min if how == "shorter" else max)(width, height) > size


def _shrink(image: Image.Image, size: int, how: Resize) -> bytes:
    scale = min(1.0, size / (max if how == "longer" else min)(image.size))
    # A JPEG is decoded at a half, a quarter, an eighth of its size where that leaves the pixels that are needed.
    image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        page = Image.new("RGBA", upright.size, "white")
        page.alpha_composite(colours)
        upright = page
    picture = upright if upright.mode == "L" else upright.convert("RGB")
    scale = min(1.0, size / (max if how == "longer" else min)(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    if how == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
