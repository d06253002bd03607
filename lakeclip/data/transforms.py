"""Encoded images to the model's square of uint8 pixels; the model scales and normalises them on its device.

Bicubic and antialiased on uint8, like OpenAI's preprocessing with Pillow. For training, a JPEG is decoded only as large
as needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from lakeclip.data.decode import EncodedImage, Pixels, decode_image, orient, rgb_pixels
from lakeclip.errors import ImageError

Square = UInt8[Tensor, "3 size size"]

#: Beyond it only the middle is resized: the whole of a 1 × 50,000 line at 224 pixels a side would not fit in memory.
_LONGEST_ASPECT = 16

#: Decode at 1/2, 1/4 or 1/8 only where the crop keeps this many times the side that is asked for. Upscaled photographs
#: then come out at 47–56 dB of full decoding, sharp ones at 41; with 1.0 sharp ones drop to 33 and are visibly softer.
_REDUCTION_MARGIN = 1.5


class TrainTransform:
    """The paper's only augmentation: a random square crop of the resized image (Radford et al. 2021, §2.4). Picklable.

    The crop's area is drawn uniformly between `resize_ratio` and all of the largest square, then its place.

    Args:
        image_size: side of the result.
        resize_ratio: smallest share of the largest square's area; 1 to move the largest square only.
    """

    def __init__(self, image_size: int, resize_ratio: float = 0.75) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {image_size}")
        if not 0 < resize_ratio <= 1:
            raise ValueError(f"resize_ratio must be in (0, 1], not {resize_ratio}")
        self.image_size = image_size
        self.resize_ratio = resize_ratio

    def __call__(self, data: bytes, draws: Float64[np.ndarray, "3"]) -> Square:
        """Decode and crop one image.

        Args:
            data: the encoded image.
            draws: three numbers from [0, 1), of which the crop is a function: its area, its top, its left.

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
        )
        # Turning the small square is turning the photo; the crop's place is as random either way.
        return _to_tensor(orient(square, image.orientation))

    def place(self, image: EncodedImage, draws: Float64[np.ndarray, "3"]) -> tuple[int, int, int]:
        """Left, top and side of the crop in the stored image's pixels."""
        left, top, side, reduction = self._crop(image, draws)
        return left * reduction, top * reduction, side * reduction

    def _crop(self, image: EncodedImage, draws: Float64[np.ndarray, "3"]) -> tuple[int, int, int, int]:
        """Left, top and side of the crop in the pixels of the image decoded at 1/reduction, and the reduction."""
        area, down, right = draws
        largest = min(image.height, image.width)
        side = max(1, round(largest * (self.resize_ratio + (1 - self.resize_ratio) * area) ** 0.5))
        reduction = next((n for n in (8, 4, 2) if side >= _REDUCTION_MARGIN * n * self.image_size), 1)
        # On the grid of the reduced image: between its pixels a crop would have to be interpolated once more.
        side = side // reduction
        top = int(down * (-(-image.height // reduction) - side + 1))
        left = int(right * (-(-image.width // reduction) - side + 1))
        return left, top, side, reduction


class EvalTransform:
    """OpenAI's preprocessing: the shorter side to `image_size`, then the square in the middle. Picklable.

    Args:
        image_size: side of the result.
    """

    def __init__(self, image_size: int) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {image_size}")
        self.image_size = image_size

    def __call__(self, image: bytes | Image.Image | str | Path) -> Square:
        """Decode (where it is not yet) and crop one image.

        Args:
            image: the encoded image, a Pillow image, or the path of a file.

        Returns:
            (3, image_size, image_size) uint8; stack several for `encode_image`, which normalises them.

        Raises:
            ImageError: the file cannot be read or the image cannot be decoded.
        """
        pixels = _read(image)
        height, width = pixels.shape[:2]
        short = min(height, width)
        pixels = _middle(
            pixels,
            min(height, _LONGEST_ASPECT * short),
            min(width, _LONGEST_ASPECT * short),
        )
        height, width = pixels.shape[:2]
        size = self.image_size
        resized = _resize(pixels, size * height // short, size * width // short)
        return _to_tensor(_middle(resized, size, size))


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


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    # Halves round to even, as in torchvision's CenterCrop.
    top = round((pixels.shape[0] - height) / 2)
    left = round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    resized = interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _to_tensor(square: Pixels) -> Square:
    """A view where that can be: whoever makes a batch of it copies it anyway."""
    planes = square.transpose(2, 0, 1)
    return torch.from_numpy(planes if min(planes.strides) > 0 else planes.copy())
