from __future__ import annotations

import struct
import zlib

import pytest

from lakeclip.data.decode import decode_image
from lakeclip.errors import ImageError
from lakeclip.lake.images import MAX_PIXELS, ImageInfo, check_image, image_formats, image_suffixes, suffix_of
from tests.unit.lake.sample_files import picture


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "I;16"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("TIFF", "CMYK"),
    ],
)
def test_every_colour_mode_is_accepted(kind: str, mode: str) -> None:
    assert check_image(picture(1, kind, mode, (37, 21))) == ImageInfo(kind.lower(), 37, 21)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_file_is_rejected(kind: str) -> None:
    data = picture(1, kind, size=(200, 200))
    for keep in (0.95, 0.5, 0.1):
        reason = check_image(data[: int(len(data) * keep)])
        assert isinstance(reason, str), f"{kind} cut to {keep}"
        assert reason.partition(":")[0] in ("truncated image", "broken image", "not an image")


@pytest.mark.parametrize(
    "data", [b"<html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"x" * 40, b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_other_files_are_rejected_with_a_reason(data: bytes) -> None:
    assert isinstance(check_image(data), str)
    assert check_image(b"") == "empty file"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_rejected_by_its_header() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"x")]
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    assert str(check_image(b"\x89PNG\r\n\x1a\n" + b"".join(packed))).startswith("too large")
    jpeg = bytearray(picture())
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 60_000, 60_000)
    assert str(check_image(bytes(jpeg))).startswith("too large")


def test_suffixes_of_image_formats() -> None:
    assert {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"} <= image_suffixes().keys()
    assert not {".eps", ".pdf", ".mpg", ".txt", ".json"} & image_suffixes().keys()
    assert suffix_of("A/B.JPEG") == ".jpeg"


def test_formats_that_run_another_program_are_rejected() -> None:
    """Reject EPS, which Pillow opens with Ghostscript, a programming language."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert check_image(eps) == "not an image"
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(eps)
    assert not {"EPS", "WMF", "HDF5", "GRIB", "BUFR"} & set(image_formats())
    assert {"JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"} <= set(image_formats())
