"""Convert encoded images to square uint8 tensors; the model scales and normalises them on its device.

Resizing is bicubic and antialiased on uint8, like OpenAI's preprocessing with Pillow. For training, a JPEG is decoded
only as large as needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from lakeclip.config.schema import ModelConfig
from lakeclip.data.decode import EncodedImage, Pixels, decode_image, orient, rgb_pixels
from lakeclip.errors import ImageError

Square = UInt8[Tensor, "3 size size"]
ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]

#: Longest aspect ratio that is resized whole. Longer images are cut to their middle first: a line of 1 × 50,000 pixels,
#: resized to a shorter side of 224, would not fit in memory.
_MAX_ASPECT = 16

#: Decode at 1/2, 1/4 or 1/8 only if the crop then still has this many times the requested side. Upscaled photographs
#: then match full decoding at 47–56 dB, sharp ones at 41 dB; with 1.0 sharp ones drop to 33 dB and are visibly softer.
_REDUCTION_MARGIN = 1.5


class TrainTransform:
    """Random square crop of the resized image, the CLIP paper's only augmentation (Radford et al. 2021, §2.4).

    The crop's area is drawn uniformly between `resize_ratio` and 1 times that of the largest square, then its position.
    Picklable.

    Args:
        image_size: side of the result in pixels.
        resize_ratio: smallest share of the largest square's area; 1 to only move the largest square.
        interpolation: filter of resizing, "bicubic" or "bilinear".
    """

    def __init__(self, image_size: int, resize_ratio: float = 0.75, interpolation: Interpolation = "bicubic") -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {image_size}")
        if not 0 < resize_ratio <= 1:
            raise ValueError(f"resize_ratio must be in (0, 1], not {resize_ratio}")
        self.image_size = image_size
        self.resize_ratio = resize_ratio
        self.interpolation = interpolation

    def __call__(self, data: bytes, draws: Float64[np.ndarray, "3"]) -> Square:
        """Decode and crop one image.

        Args:
            data: the encoded image.
            draws: three numbers from [0, 1) that determine the crop's area, top and left.

        Raises:
            ImageError: the image cannot be decoded.
        """
        image = EncodedImage(data)
        left, top, side, reduction = self._crop(image, draws)
        pixels = image.pixels(reduction)
        square = _resize(
            pixels[top : top + side, left : left + side],
            self.image_size,
            self.image_size,
            self.interpolation,
        )
        # Rotating the small square is cheaper than rotating the photo, and the crop's position is as random.
        return _to_tensor(orient(square, image.orientation))

    def crop_box(self, image: EncodedImage, draws: Float64[np.ndarray, "3"]) -> tuple[int, int, int]:
        """Return the left, top and side of the crop in pixels of the stored image."""
        left, top, side, reduction = self._crop(image, draws)
        return left * reduction, top * reduction, side * reduction

    def _crop(self, image: EncodedImage, draws: Float64[np.ndarray, "3"]) -> tuple[int, int, int, int]:
        """Return the crop's left, top and side in pixels of the image decoded at 1/reduction, and the reduction."""
        area, down, right = draws
        largest = min(image.height, image.width)
        side = max(1, round(largest * (self.resize_ratio + (1 - self.resize_ratio) * area) ** 0.5))
        reduction = next((n for n in (8, 4, 2) if side >= _REDUCTION_MARGIN * n * self.image_size), 1)
        # Stay on the pixel grid of the reduced image, or the crop would need another interpolation.
        side = side // reduction
        top = int(down * (-(-image.height // reduction) - side + 1))
        left = int(right * (-(-image.width // reduction) - side + 1))
        return left, top, side, reduction


class EvalTransform:
    """A model's preprocessing, by default OpenAI's: resize the shorter side, then crop the center square. Picklable.

    Args:
        image_size: side of the result in pixels.
        resize_mode: "shortest" as above; "squash" to resize both sides, whatever the image's shape; "longest" to resize
            the longer side and fill the rest with black.
        interpolation: filter of resizing, "bicubic" or "bilinear".
    """

    def __init__(
        self, image_size: int, resize_mode: ResizeMode = "shortest", interpolation: Interpolation = "bicubic"
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {image_size}")
        self.image_size = image_size
        self.resize_mode = resize_mode
        self.interpolation = interpolation

    @classmethod
    def of(cls, config: ModelConfig) -> EvalTransform:
        """Return the preprocessing of a model."""
        return cls(config.image_resolution, config.resize_mode, config.interpolation)

    def __call__(self, image: bytes | Image.Image | str | Path) -> Square:
        """Decode one image if necessary, resize it and crop it.

        Args:
            image: the encoded image, a Pillow image, or the path of a file.

        Returns:
            (3, image_size, image_size) uint8; stack several for `encode_image`, which normalises them.

        Raises:
            ImageError: the file cannot be read or the image cannot be decoded.
        """
        pixels = _read(image)
        size, height, width = self.image_size, *pixels.shape[:2]
        if self.resize_mode == "squash":
            return _to_tensor(_resize(pixels, size, size, self.interpolation))
        if self.resize_mode == "longest":
            ratio = max(height, width) / size
            small = _resize(pixels, max(1, round(height / ratio)), max(1, round(width / ratio)), self.interpolation)
            return _to_tensor(_pad_to_square(small, size))
        short = min(height, width)
        pixels = _center_crop(
            pixels,
            min(height, _MAX_ASPECT * short),
            min(width, _MAX_ASPECT * short),
        )
        height, width = pixels.shape[:2]
        resized = _resize(pixels, size * height // short, size * width // short, self.interpolation)
        return _to_tensor(_center_crop(resized, size, size))


def _read(image: bytes | Image.Image | str | Path) -> Pixels:
    if isinstance(image, Image.Image):
        return rgb_pixels(image)
    if isinstance(image, (str, Path)):
        path = Path(image)
        try:
            image = path.read_bytes()
        except OSError as error:
            raise ImageError(f"cannot read {path}", found=error.strerror or str(error)) from None
    if not isinstance(image, bytes):
        raise TypeError(f"an image must be bytes, a PIL.Image or a path, not {type(image).__name__}")
    return decode_image(image)


def _center_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    # Halves round to even, as in torchvision's CenterCrop.
    top = round((pixels.shape[0] - height) / 2)
    left = round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


def _pad_to_square(pixels: Pixels, size: int) -> Pixels:
    height, width = pixels.shape[:2]
    square = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _resize(pixels: Pixels, height: int, width: int, interpolation: Interpolation = "bicubic") -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    resized = interpolate(planes, size=(height, width), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _to_tensor(square: Pixels) -> Square:
    """Return a view if possible: building a batch copies the pixels anyway."""
    planes = square.transpose(2, 0, 1)
    return torch.from_numpy(planes if min(planes.strides) > 0 else planes.copy())
