"""Open images of any format with Pillow: silently, and within limits on pixels.

Pillow reports odd files in three ways that would reach the terminal; none of them is wanted, because a file that cannot
be used is reported with its reason, and one that can be used needs no report.

- Python warnings: `quiet` ignores those of Pillow's modules while an image is being read.
- Log records: Pillow's logger gets a handler that does nothing, so that Python does not print them. A program that
  configures logging still receives them.
- libtiff prints errors from C to file descriptor 2. Redirecting that descriptor would also swallow what other threads
  write, the progress bar for example. Instead libtiff's own error handler is removed, which is thread-safe. Pillow
  raises its exceptions independently of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError, _imaging

from lakeclip.errors import ImageError

#: Images with more pixels than this are rejected by their header, before they are decoded: a few bytes can claim any
#: size. (Pillow's own limit, twice its MAX_IMAGE_PIXELS: half a gigabyte as RGB.)
MAX_PIXELS = 178_956_970
#: The same for images that Pillow decodes in Python, pixel by pixel (QOI, XPM, plain PPM, …): up to a minute.
MAX_PIXELS_IN_PYTHON = 2**24

#: Formats that Pillow lists but only identifies (BUFR, GRIB, HDF5, MPEG), opens with another program (EPS with
#: Ghostscript, which is a programming language), or renders rather than decodes (WMF and EMF, on Windows only).
NOT_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

#: Suffixes of files that Pillow reads, but does not list. MPO is a JPEG followed by further images.
_MORE_SUFFIXES = {
    **dict.fromkeys((".jfif", ".jif", ".jps", ".mpo"), "JPEG"),
    **dict.fromkeys((".spi", ".spider"), "SPIDER"),
    ".imt": "IMT",
    ".p7": "XVTHUMB",
    ".pam": "PPM",
}


class ImageTooLargeError(ImageError):
    """An image with more pixels than are decoded."""


class LoadedImage(NamedTuple):
    """Image that Pillow has decoded, with what its file says about the samples.

    Attributes:
        image: the first frame, decoded.
        rawmode: how the file stores its samples ("I;16B", "L;4", …); "" if unknown.
        data: the file; b"" if unknown.
    """

    image: Image.Image
    rawmode: str
    data: bytes


@functools.cache
def image_suffixes() -> dict[str, str]:
    """Return lower-case suffix (".jpg") → Pillow's name of the format, for every image format that Pillow decodes."""
    Image.init()
    known = {**Image.registered_extensions(), **_MORE_SUFFIXES}
    return {suffix: kind for suffix, kind in known.items() if kind in Image.OPEN and kind not in NOT_PICTURES}


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats to decode; others would be rendered or opened with another program."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - NOT_PICTURES))


def open_image(data: bytes) -> Image.Image:
    """Open an image by its content, whatever its file is called, and check its size. No pixel is decoded yet.

    Call this, and decode, within `quiet`.

    Raises:
        ImageError: too many pixels.
        UnidentifiedImageError: no format that is decoded.
        Exception: almost any other, on broken bytes.
    """
    image = Image.open(io.BytesIO(data), formats=image_formats())
    width, height = image.size
    in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    check_num_pixels(width, height, MAX_PIXELS_IN_PYTHON if in_python else MAX_PIXELS)
    return image


def load_image(data: bytes) -> LoadedImage:
    """Decode an image by its content; of several frames, the first.

    Raises:
        ImageError: not an image, too large, truncated or broken.
    """
    try:
        with quiet():
            image = open_image(data)
            rawmode = rawmode_of(image)
            image.load()
            check_num_pixels(*image.size)
            return LoadedImage(image, rawmode, data)
    except Exception as error:  # Pillow's readers of some fifty formats raise any exception on broken bytes
        raise explain(error, data) from None


def explain(error: Exception, data: bytes) -> ImageError:
    """Convert an exception of Pillow into an error with a reason."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large(str(error).partition(" exceeds")[0], MAX_PIXELS)
    if isinstance(error, UnidentifiedImageError):
        found = f"{len(data)} bytes of no known image format" if data else "no bytes"
        return ImageError("the image cannot be decoded", found=found)
    return ImageError("the image cannot be decoded", found=str(error) or type(error).__name__)


def check_num_pixels(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    """Raise an `ImageError` if an image has more pixels than `limit`."""
    if width * height > limit:
        raise _too_large(f"{width} × {height} pixels", limit)


def _too_large(found: str, limit: int) -> ImageError:
    return ImageTooLargeError("the image is too large", found=found, allowed=f"{limit / 1e6:.0f} million pixels")


def rawmode_of(image: Image.Image) -> str:
    """Return how the file of an opened image stores its samples; "" once it has been decoded."""
    tiles = getattr(image, "tile", ())
    if not tiles:
        return ""
    args = tiles[0][3]
    mode = args[0] if isinstance(args, tuple) and args else args
    return mode if isinstance(mode, str) else ""


class _Quiet:
    """Number of threads that read images, and the filter that ignores Pillow's warnings meanwhile.

    `warnings.catch_warnings` would not do: it restores the filters that it found, which with several threads may be
    those of another thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._filter: object = None

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1 or self._filter not in warnings.filters:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]

    def exit(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and isinstance(warnings.filters, list):
                with contextlib.suppress(ValueError):  # another thread has replaced the list
                    warnings.filters.remove(self._filter)


_quiet = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore Pillow's warnings in all threads during the `with` block."""
    _quiet.enter()
    try:
        yield
    finally:
        _quiet.exit()


def _silence_libtiff() -> None:
    """Remove libtiff's error handlers, which print to the terminal. A build without the symbols stays as it is."""
    with contextlib.suppress(OSError, AttributeError):
        # Looking a symbol up in Pillow's module also searches the libraries that it is linked to.
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


logging.getLogger("PIL").addHandler(logging.NullHandler())
_silence_libtiff()
