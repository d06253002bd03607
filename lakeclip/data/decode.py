"""Encoded bytes to RGB pixels: any format, any colour mode, never a surprise.

JPEGs go to libjpeg-turbo, which decodes straight to half, a quarter or an eighth of the size where that is enough.
What it cannot do exactly (CMYK) or finds fault with, and every other format, goes to Pillow.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from jaxtyping import Float, Integer, UInt8
from PIL import Image, UnidentifiedImageError

from lakeclip.errors import ImageError
from lakeclip.lake.sources.images import MAX_PIXELS, picture_formats

_EXIF_ORIENTATION = 0x0112

Pixels = UInt8[np.ndarray, "_ _ 3"]


class EncodedImage:
    """An image whose header is read and checked, and whose pixels wait until it is known how many are needed.

    Attributes:
        height, width: as stored, before the EXIF orientation is applied.
        orientation: EXIF's, 1 (upright) to 8; see `orient`.

    Raises:
        ImageError: not an image, too large, or (for what is not a JPEG) broken.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._image: Image.Image | None = None
        try:
            self.height, self.width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            colours = "not a JPEG"
        if colours in ("YCbCr", "RGB", "Gray"):
            _refuse_bomb(self.width, self.height)
            self.orientation = _jpeg_orientation(data)
        else:
            self._image = _open(data)
            self.width, self.height = self._image.size
            self.orientation = _orientation(self._image)

    def pixels(self, reduction: int = 1) -> Pixels:
        """Decode, as stored.

        Args:
            reduction: 1, 2, 4 or 8, to get ceil(height / reduction) × ceil(width / reduction) pixels, each the mean of
                a square or (in a JPEG's frequencies) nearly so.

        Raises:
            ImageError: the data is truncated or broken.
        """
        if self._image is None:
            try:
                pixels: Pixels = simplejpeg.decode_jpeg(
                    self._data,
                    "RGB",
                    min_height=-(-self.height // reduction),
                    min_width=-(-self.width // reduction),
                    min_factor=reduction,
                )
                return pixels
            except ValueError:
                # Any irregularity ends here. Pillow tells what is harmless (stray bytes) from what is not (a cut file).
                self._image = _open(self._data)
        rgb = _to_rgb(self._image)
        return np.array(rgb.reduce(reduction) if reduction > 1 else rgb)


def decode_image(data: bytes) -> Pixels:
    """All pixels of an encoded image as it is meant to be seen.

    EXIF orientation is applied. Transparency is laid on white, as on the page that the image and its caption come from
    (dropping it would show hidden colours, mostly black on black for drawings). Grey levels beyond 8 bits are scaled,
    not clipped. Of an animation, the first frame.

    Args:
        data: the file's content, in any format Pillow reads.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ImageError: not an image, truncated, broken, or more than `MAX_PIXELS` pixels.
    """
    image = EncodedImage(data)
    return np.ascontiguousarray(orient(image.pixels(), image.orientation))


def rgb_pixels(image: Image.Image) -> Pixels:
    """All pixels of an image that Pillow has opened, by the rules of `decode_image`.

    Raises:
        ImageError: the image is broken, or its colours have no RGB equivalent.
    """
    try:
        image.load()
    except Exception as error:
        raise _broken(error) from None
    return np.array(orient(np.asarray(_to_rgb(image)), _orientation(image)), order="C")


def orient(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror stored pixels as their EXIF orientation (1 to 8, 1 being upright) asks. A view, not a copy."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _open(data: bytes) -> Image.Image:
    """The loaded image (the first of several)."""
    try:
        image = Image.open(io.BytesIO(data), formats=picture_formats())
        _refuse_bomb(*image.size)
        image.load()
        return image
    except ImageError:
        raise
    except UnidentifiedImageError:
        found = f"{len(data)} bytes that are no known image format" if data else "no bytes"
        raise ImageError("the image cannot be decoded", found=found) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            "the image is too large", found=str(error).partition(" exceeds")[0], allowed=f"{MAX_PIXELS:,} pixels"
        ) from None
    # Pillow's readers of some eighty formats meet broken bytes with nearly every exception there is.
    except Exception as error:
        raise _broken(error) from None


def _broken(error: Exception) -> ImageError:
    return ImageError("the image cannot be decoded", found=str(error) or type(error).__name__)


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            "the image is too large",
            found=f"{width} × {height} pixels",
            allowed=f"{MAX_PIXELS:,} pixels",
        )


def _jpeg_orientation(data: bytes) -> int:
    if not _has_exif(data):
        return 1
    try:
        return _orientation(Image.open(io.BytesIO(data), formats=picture_formats()))
    # As below: broken metadata is no reason to lose the picture.
    except Exception:
        return 1


def _has_exif(data: bytes) -> bool:
    """Walk a JPEG's segments up to the pixels: Pillow takes ten times as long to find that there is no EXIF."""
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != b"\xda":
        if data[start + 4 : start + 10] == b"Exif\0\0":
            return True
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return data[start : start + 1] != b"\xff"  # irregular: let Pillow see


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    # A camera's broken metadata is no reason to lose the picture.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        if image.mode.startswith(("I", "F")):
            return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
        if image.has_transparency_data:
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image.convert("RGBA"))
            return page.convert("RGB")
        return image.convert("RGB")
    except (ValueError, OSError) as error:
        raise ImageError(
            f"an image of mode {image.mode} cannot be converted to RGB",
            found=str(error),
        ) from None


def _to_eight_bits(
    grey: Integer[np.ndarray, "height width"] | Float[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width"]:
    """Deep grey levels on the smallest usual scale that holds them; if none does, from their least to their most."""
    values = np.nan_to_num(grey.astype(np.float64))
    least, most = values.min(), values.max()
    if grey.dtype.kind == "u":
        scales = [65535.0]
    elif np.issubdtype(grey.dtype, np.floating):
        scales = [1.0, 255.0, 65535.0]
    else:
        scales = [255.0, 65535.0]
    if least >= 0 and (fitting := [scale for scale in scales if most <= scale]):
        least, most = 0.0, fitting[0]
    span = most - least if most > least else 1.0
    levels: UInt8[np.ndarray, "height width"] = np.rint((values - least) * (255 / span)).astype(np.uint8)
    return levels
