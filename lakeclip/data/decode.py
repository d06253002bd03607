"""Decode encoded images of any format and colour mode to RGB pixels.

JPEGs are decoded by libjpeg-turbo, directly at a half, a quarter or an eighth of the size if that is enough. Pillow
decodes CMYK and irregular JPEGs and all other formats.
"""

from __future__ import annotations

import io
from typing import IO

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from lakeclip.lake.pillow import LoadedImage, check_num_pixels, explain, image_formats, load_image, quiet, rawmode_of
from lakeclip.lake.rgb import to_rgb

_EXIF_ORIENTATION = 0x0112

Pixels = UInt8[np.ndarray, "_ _ 3"]


class EncodedImage:
    """Encoded image whose header has been read and checked; `pixels` decodes it at the size that is needed.

    Attributes:
        height, width: stored size in pixels, before the EXIF orientation is applied.
        orientation: EXIF orientation, 1 (upright) to 8; see `orient`.

    Raises:
        ImageError: not an image, too large, or (formats other than JPEG) broken.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._loaded: LoadedImage | None = None
        try:
            self.height, self.width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            colours = "not a JPEG"
        if colours in ("YCbCr", "RGB", "Gray"):
            check_num_pixels(self.width, self.height)
            self.orientation = _jpeg_orientation(data)
        else:
            self._loaded = load_image(data)
            self.width, self.height = self._loaded.image.size
            self.orientation = _orientation(self._loaded.image)

    def pixels(self, reduction: int = 1) -> Pixels:
        """Decode the image in its stored orientation.

        Args:
            reduction: 1, 2, 4 or 8, for ceil(height / reduction) × ceil(width / reduction) pixels, each the mean of a
                square (for a JPEG approximately, as it is reduced in the frequency domain).

        Raises:
            ImageError: the data is truncated or broken.
        """
        if self._loaded is None:
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
                # libjpeg-turbo rejects any irregularity. Pillow distinguishes stray bytes from a truncated file.
                self._loaded = load_image(self._data)
        rgb = to_rgb(self._loaded)
        return np.array(rgb.reduce(reduction) if reduction > 1 else rgb)


def decode_image(data: bytes) -> Pixels:
    """Decode all pixels of an encoded image as a viewer would show them.

    EXIF orientation is applied. Transparent images are composited on white, as on the web page that the image and its
    caption come from (dropping the alpha channel would reveal hidden colours: drawings often become black on black).
    Levels beyond 8 bits are scaled, not clipped (`lakeclip.lake.rgb`). An animation yields its first frame.

    Args:
        data: the file's content, in any format that Pillow reads.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ImageError: not an image, truncated, broken, or more than `MAX_PIXELS` pixels.
    """
    image = EncodedImage(data)
    return np.ascontiguousarray(orient(image.pixels(), image.orientation))


def rgb_pixels(image: Image.Image) -> Pixels:
    """Return all pixels of an image that Pillow has opened, by the rules of `decode_image`.

    Raises:
        ImageError: the image is broken, or its colours have no RGB equivalent.
    """
    rawmode = rawmode_of(image)
    data = _file_of(image) if "16" in rawmode or image.format == "JPEG2000" else b""
    try:
        with quiet():
            image.load()
    except Exception as error:
        raise explain(error, b"") from None
    return np.array(orient(np.asarray(to_rgb(LoadedImage(image, rawmode, data))), _orientation(image)), order="C")


def orient(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate and mirror stored pixels by their EXIF orientation (1 to 8; 1 is upright). Return a view, not a copy."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _file_of(image: Image.Image) -> bytes:
    """Return the file of an image that has been opened and not yet decoded; b"" if it cannot be read."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None:
        return b""
    try:
        position = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(position)
    except (OSError, ValueError):
        return b""
    return data


def _jpeg_orientation(data: bytes) -> int:
    if not _has_orientation(data):
        return 1
    try:
        with quiet():
            return _orientation(Image.open(io.BytesIO(data), formats=image_formats()))
    # Broken metadata is no reason to reject the image.
    except Exception:
        return 1


def _has_orientation(data: bytes) -> bool:
    """Scan a JPEG's segments for an orientation (EXIF, XMP), up to the pixels; Pillow takes ten times as long."""
    start = 2
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != b"\xda":
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if data[start + 4 : start + 10] == b"Exif\0\0":
            return True
        if data[start + 4 : start + 8] == b"http" and b"tiff:Orientation" in data[start:end]:
            return True
        start = end
    return data[start : start + 1] != b"\xff"  # irregular: leave it to Pillow


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    # Broken metadata, as some cameras write it, is no reason to reject the image.
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
