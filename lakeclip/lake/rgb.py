"""Convert decoded images of every colour mode to RGB: grey levels by their real range, transparency laid on white.

The result is Pillow's `convert("RGB")`, except where that loses what a viewer would show:

- Samples of more than 8 bits are scaled, not clipped, by the range that the file declares or by the smallest usual one
  that holds all levels (`level_range`).
- Transparent pixels are laid on white; Pillow drops the transparency.
- A TIFF that stores white as 0 in more than 8 bits is inverted, as Pillow inverts those of 8 bits.

The rule looks at a whole image, never at a crop. Colour profiles (ICC) are ignored, as in CLIP's own preprocessing.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image

from lakeclip.errors import ImageError
from lakeclip.lake.pillow import LoadedImage, image_formats, quiet

#: Ranges of integer levels, by bits. Cameras, scanners and X-ray machines have 10, 12 or 14 bits.
_BITS = (8, 10, 12, 14, 16)
#: How a file stores colours of 16 bits → the mode and raw mode by which Pillow returns the lower bytes; Pillow itself
#: keeps the upper ones. "LA;16B" is read as four channels of one byte.
_LOWER_BYTES = {
    "RGB;16B": ("RGB", "RGB;16L"),
    "RGB;16L": ("RGB", "RGB;16B"),
    "RGB;16N": ("RGB", "RGB;16B"),
    "RGBX;16B": ("RGB", "RGBX;16L"),
    "RGBX;16L": ("RGB", "RGBX;16B"),
    "RGBA;16B": ("RGBA", "RGBA;16L"),
    "RGBA;16L": ("RGBA", "RGBA;16B"),
    "RGBA;16N": ("RGBA", "RGBA;16B"),
    "LA;16B": ("RGBA", "RGBA"),
}
#: PNG's grey levels of fewer than 8 bits, which Pillow multiplies; the transparent level it leaves as stored.
_GREY_STEPS = {"L;2": 85, "L;4": 17}

#: Start of a JPEG 2000's codestream; the bits of its samples follow 42 bytes later.
_J2K_SIZE = b"\xff\x4f\xff\x51"

_TIFF_PHOTOMETRIC = 262
_TIFF_SMALLEST, _TIFF_LARGEST = 340, 341
_WHITE_IS_ZERO = 0

Levels = Shaped[np.ndarray, "..."]
Samples = Integer[np.ndarray, "height width channels"]
Mask = Bool[np.ndarray, "height width"]


def to_rgb(loaded: LoadedImage) -> Image.Image:
    """Convert a decoded image to mode RGB; see the rule of this module.

    Raises:
        ImageError: its colours have no RGB equivalent.
    """
    image = loaded.image
    try:
        with quiet():
            if image.mode.startswith(("I", "F")):
                return _grey_to_rgb(loaded)
            if loaded.rawmode in _LOWER_BYTES and (deep := _deep_to_rgb(loaded)) is not None:
                return deep
            if _has_transparency(image):
                return _on_white(image, loaded.rawmode)
            return image.convert("RGB")
    except Exception as error:  # Pillow's conversions raise any exception on odd images
        found = str(error) or type(error).__name__
        raise ImageError(f"an image of mode {image.mode} cannot be converted to RGB", found=found) from None


def level_range(levels: Levels, bits: int | None = None, largest: float = 65535.0) -> tuple[float, float]:
    """Return the levels that become black and white.

    Integers: 0 and the largest level of 8, 10, 12, 14 or 16 bits, the first that holds all levels. Floats: 0 and 1, or
    0 and 255, 1023, … 65535. If a level is negative or beyond that, the smallest and the largest level.

    Args:
        levels: all visible levels of the image.
        bits: significant bits that the file declares: then 0 and the largest level of these bits, unless a level is
            larger.
        largest: largest level that the file can store.
    """
    finite = levels[np.isfinite(levels)] if levels.dtype.kind == "f" else levels
    if not finite.size:
        return 0.0, largest
    low, high = float(finite.min()), float(finite.max())
    if low < 0:
        return low, high
    if bits is not None:
        stated = float(2**bits - 1)
        return 0.0, stated if high <= stated else largest
    scales = [1.0] if levels.dtype.kind == "f" else []
    scales += [float(2**number - 1) for number in _BITS if 2**number - 1 < largest] + [largest]
    return next(((0.0, scale) for scale in scales if high <= scale), (low, high))


def _grey_to_rgb(loaded: LoadedImage) -> Image.Image:
    """Convert an image of one channel with more than 8 bits."""
    image = loaded.image
    levels = np.asarray(image)
    transparent = _pixels_equal(levels, image.info.get("transparency"))
    visible = levels if transparent is None else levels[~transparent]
    low, high = _grey_range(loaded, visible)
    grey = _scale(levels, low, high)
    if _tiff_tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if transparent is not None:
        grey[transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _grey_range(loaded: LoadedImage, visible: Levels) -> tuple[float, float]:
    image, rawmode = loaded.image, loaded.rawmode
    if rawmode == "I;12":
        return 0.0, 4095.0
    if image.mode != "F" and _is_scaled(loaded):
        return 0.0, 65535.0
    declared = _tiff_range(image)
    if declared is not None and visible.size and declared[0] <= visible.min() and visible.max() <= declared[1]:
        return declared
    largest = 32767.0 if rawmode in ("I;16S", "I;16BS") else 65535.0
    return level_range(visible, _significant_bits(loaded.data), largest)


def _is_scaled(loaded: LoadedImage) -> bool:
    """Return True if Pillow has scaled the levels to 16 bits, by a smaller range that the file declares."""
    if loaded.image.format == "PPM":
        return loaded.rawmode != "I;16B"
    if loaded.image.format == "JPEG2000":
        start = loaded.data.find(_J2K_SIZE)
        precision = loaded.data[start + 42 : start + 43]
        return start >= 0 and precision != b"" and (precision[0] & 0x7F) + 1 < 16
    return False


def _scale(levels: Shaped[np.ndarray, "..."], low: float, high: float) -> UInt8[np.ndarray, "..."]:
    span = high - low if high > low else 1.0
    values = np.nan_to_num(levels.astype(np.float64), nan=low, posinf=high, neginf=low)
    scaled: UInt8[np.ndarray, "..."] = np.rint((values - low) * (255 / span)).clip(0, 255).astype(np.uint8)
    return scaled


def _deep_to_rgb(loaded: LoadedImage) -> Image.Image | None:
    """Convert colours of 16 bits that are dark or have a transparent colour; return None for others.

    Of 16 bits Pillow keeps the upper 8. If these are small in all pixels, the colours may have 10, 12 or 14 bits.
    """
    upper = np.asarray(loaded.image)
    colours = upper[..., :3][upper[..., 3] > 0] if upper.shape[2] == 4 else upper
    transparency = loaded.image.info.get("transparency")
    if transparency is None and (not colours.size or colours.max() >= 2**6):
        return None
    samples = _samples_of_16_bits(loaded)
    if samples is None:
        return None
    if samples.shape[2] == 2:
        samples = np.concatenate([samples[..., :1]] * 3 + [samples[..., 1:]], axis=2)
    colours = samples[..., :3]
    hidden = _pixels_equal(colours, transparency)
    alpha = samples[..., 3:] if samples.shape[2] == 4 else None
    if hidden is None and alpha is not None:
        hidden = alpha[..., 0] == 0
    visible = colours if hidden is None else colours[~hidden]
    low, high = level_range(visible, _significant_bits(loaded.data))
    rgb = _scale(colours, low, high)
    if alpha is not None:
        opaque = high if alpha.max() <= high else 65535.0  # the alpha channel may have 12 bits, too
        rgb = np.rint(255 + (rgb.astype(np.float64) - 255) * (alpha / opaque)).astype(np.uint8)
    elif hidden is not None:
        rgb[hidden] = 255
    return Image.fromarray(rgb)


def _samples_of_16_bits(loaded: LoadedImage) -> Samples | None:
    """Decode once more, for the lower bytes; return None if the file cannot be read so."""
    if not loaded.data:
        return None
    mode, rawmode = _LOWER_BYTES[loaded.rawmode]
    image = Image.open(io.BytesIO(loaded.data), formats=image_formats())
    tiles = []
    for codec, extents, offset, args in image.tile:
        known = args[0] if isinstance(args, tuple) else args
        if known != loaded.rawmode:
            return None
        tiles.append((codec, extents, offset, (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode))
    image.tile = [type(image.tile[0])(*tile) for tile in tiles]
    image._mode = mode
    image.load()
    lower = np.asarray(image).astype(np.uint16)
    if loaded.rawmode == "LA;16B":
        return lower[..., 0::2] * 256 + lower[..., 1::2]
    upper = np.asarray(loaded.image).astype(np.uint16)
    return upper * 256 + lower if upper.shape == lower.shape else None


def _pixels_equal(values: Shaped[np.ndarray, "height width ..."], transparency: object) -> Mask | None:
    """Return where an image has its transparent level or colour; None if it has none."""
    if isinstance(transparency, int) and values.ndim == 2:
        mask: Mask = values == transparency
        return mask
    if isinstance(transparency, tuple) and values.ndim == 3 and len(transparency) == 3:
        return np.asarray((values == np.array(transparency)).all(axis=2))
    return None


def _has_transparency(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is None:  # as in an ICNS, for which Pillow's own property fails
        return "transparency" in image.info or image.im.getpalettemode().endswith("A")
    return image.has_transparency_data


def _on_white(image: Image.Image, rawmode: str) -> Image.Image:
    """Lay an image of 8 bits with any kind of transparency on white."""
    transparency = image.info.get("transparency")
    if image.mode in ("L", "RGB"):  # one level or colour is transparent
        if image.format == "PNG" and isinstance(transparency, int):
            transparency = (transparency & 0xFF) * _GREY_STEPS.get(rawmode, 1)
        elif image.format == "PNG" and isinstance(transparency, tuple):
            transparency = tuple(level & 0xFF for level in transparency)
        pixels = np.array(image)
        if (hidden := _pixels_equal(pixels, transparency)) is not None:
            pixels[hidden] = 255
        return Image.fromarray(pixels).convert("RGB")
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image.convert("RGBA"))
    return background.convert("RGB")


def _tiff_tag(image: Image.Image, tag: int) -> object:
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(tag)


def _tiff_range(image: Image.Image) -> tuple[float, float] | None:
    """Return the range that a TIFF declares for its samples (SMinSampleValue and SMaxSampleValue)."""
    largest = _number(_tiff_tag(image, _TIFF_LARGEST))
    smallest = _number(_tiff_tag(image, _TIFF_SMALLEST)) or 0.0
    return (smallest, largest) if largest is not None and smallest < largest else None


def _number(value: object) -> float | None:
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) else None


def _significant_bits(data: bytes) -> int | None:
    """Return the significant bits that a PNG declares (sBIT; the largest of its channels), 1 to 16."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    start = 8
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        kind = data[start + 4 : start + 8]
        if kind == b"sBIT":
            stated = max(data[start + 8 : start + 8 + min(length, 3)], default=0)
            return stated if 1 <= stated <= 16 else None
        if kind in (b"IDAT", b"IEND"):
            return None
        start += 12 + length
    return None
