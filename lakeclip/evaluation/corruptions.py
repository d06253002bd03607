"""Image corruptions in five severities, modelled on ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Corruptions of ImageNet-C use its strengths, which are for images of 224 pixels a side; lengths are scaled to the actual
side. `greyscale` and `rotation` are not in ImageNet-C: they stand for faded colours and tilted cameras.

The random parts (noise, direction of the rotation) depend only on seed, row and corruption: they are the same in every
run and batch, and the noise pattern is the same at every severity.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

from lakeclip.data.decode import Pixels

SEVERITIES = (1, 2, 3, 4, 5)

#: Image side for which ImageNet-C's strengths are defined.
_SIDE = 224

_Values = Float[np.ndarray, "_ _ 3"]
_Random = np.random.Generator


def corrupt(pixels: Pixels, name: str, severity: int, *, seed: int, row: int) -> Pixels:
    """Corrupt an image.

    Args:
        pixels: (side, side, 3) uint8 RGB, in the size of the model's input.
        name: one of `CORRUPTIONS`.
        severity: 1 (weakest) to 5.
        seed, row: seed of the random parts, together with the name.
    """
    generator = np.random.default_rng([seed, row, zlib.crc32(name.encode())])
    return CORRUPTIONS[name](pixels, severity, generator)


def _gaussian_noise(pixels: Pixels, severity: int, random: _Random) -> Pixels:
    spread = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return _to_pixels(_to_values(pixels) + spread * random.standard_normal(pixels.shape))


def _shot_noise(pixels: Pixels, severity: int, random: _Random) -> Pixels:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _to_pixels(random.poisson(_to_values(pixels) * photons) / photons)


def _gaussian_blur(pixels: Pixels, severity: int, _: _Random) -> Pixels:
    radius = (1, 2, 3, 4, 6)[severity - 1] * pixels.shape[0] / _SIDE
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _brightness(pixels: Pixels, severity: int, _: _Random) -> Pixels:
    """Raise the value in HSV space; hue and saturation stay, and bright pixels saturate."""
    values = _to_values(pixels)
    value = values.max(axis=2, keepdims=True)
    brighter = np.minimum(value + 0.1 * severity, 1)
    return _to_pixels(np.where(value > 0, values * (brighter / np.maximum(value, 1 / 255)), brighter))


def _contrast(pixels: Pixels, severity: int, _: _Random) -> Pixels:
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    values = _to_values(pixels)
    mean = values.mean(axis=(0, 1), keepdims=True)
    return _to_pixels((values - mean) * kept + mean)


def _jpeg(pixels: Pixels, severity: int, _: _Random) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(Image.open(file).convert("RGB"))


def _pixelate(pixels: Pixels, severity: int, _: _Random) -> Pixels:
    height, width = pixels.shape[:2]
    kept = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = Image.fromarray(pixels).resize(
        (max(1, int(kept * width)), max(1, int(kept * height))), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def _greyscale(pixels: Pixels, severity: int, _: _Random) -> Pixels:
    photo = Image.fromarray(pixels)
    return np.asarray(Image.blend(photo, photo.convert("L").convert("RGB"), severity / 5))


def _rotation(pixels: Pixels, severity: int, random: _Random) -> Pixels:
    """Rotate the image; mirrored pixels fill the corners, as black corners would be another corruption."""
    degrees = (5, 10, 15, 20, 30)[severity - 1] * random.choice((-1, 1))
    height, width = pixels.shape[:2]
    margin = min(math.ceil(0.21 * max(height, width)) + 2, min(height, width) - 1)
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = np.asarray(Image.fromarray(padded).rotate(degrees, Image.Resampling.BICUBIC))
    return turned[margin : margin + height, margin : margin + width]


CORRUPTIONS: dict[str, Callable[[Pixels, int, _Random], Pixels]] = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "gaussian blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "greyscale": _greyscale,
    "rotation": _rotation,
}


def _to_values(pixels: Pixels) -> _Values:
    values: _Values = pixels.astype(np.float64) / 255
    return values


def _to_pixels(values: _Values) -> Pixels:
    pixels: Pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return pixels
