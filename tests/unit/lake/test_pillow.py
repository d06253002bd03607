"""Opening images: nothing is printed, suffixes do not matter, and images that take Pillow too long are refused."""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from lakeclip.data.decode import decode_image
from lakeclip.errors import ImageError
from lakeclip.lake.images import ImageInfo, check_image, image_formats, image_suffixes, read_header
from lakeclip.lake.pillow import MAX_PIXELS_IN_PYTHON, quiet
from tests.unit.lake.odd_images import tiff
from tests.unit.lake.sample_files import picture


def broken_tiff() -> bytes:
    """Return a TIFF at whose strip libtiff's LZW decoder fails."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    data[40:4000] = b"\xff" * 3960
    return bytes(data)


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    reason = check_image(broken_tiff())
    assert isinstance(reason, str)
    assert reason.startswith("broken image")
    with pytest.raises(ImageError):
        decode_image(broken_tiff())
    assert capfd.readouterr() == ("", "")


def test_pillow_neither_warns_nor_logs(capfd: pytest.CaptureFixture[str]) -> None:
    huge_tag = tiff(bytes(12), 2, 2, (8, 8, 8), tags={270: 1})
    at = huge_tag.index(struct.pack("<HHI", 270, 3, 1))
    odd = huge_tag[: at + 4] + struct.pack("<II", 9999, 8) + huge_tag[at + 12 :]
    too_many_samples = tiff(bytes(12), 2, 2, (8, 8, 8), tags={277: 30_000})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        Image.open(io.BytesIO(odd)).load()
        assert caught, "Pillow warns of this file"
        caught.clear()
        assert check_image(odd) == ImageInfo("tiff", 2, 2)
        assert decode_image(odd).shape == (2, 2, 3)
        assert isinstance(check_image(too_many_samples), str)
        assert not caught
        assert list(warnings.filters) == before
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("PIL").handlers


def test_warnings_are_ignored_until_the_last_thread_is_done() -> None:
    other, done = threading.Event(), threading.Event()

    def read() -> None:
        with quiet():
            other.set()
            done.wait(10)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        thread = threading.Thread(target=read)
        with quiet():
            thread.start()
            other.wait(10)
        warnings.warn_explicit("Pillow's", UserWarning, "x.py", 1, module="PIL.Image")
        done.set()
        thread.join()
        assert not caught
        assert list(warnings.filters) == before
        warnings.warn_explicit("Pillow's", UserWarning, "x.py", 1, module="PIL.Image")
        assert len(caught) == 1


def stereo(*frames: str) -> bytes:
    buffer = io.BytesIO()
    images = [Image.new("RGB", (16, 8), colour) for colour in frames]
    images[0].save(buffer, "MPO", save_all=True, append_images=images[1:])
    return buffer.getvalue()


def test_stereo_photos_are_images() -> None:
    """Check an .mpo, of which the first picture counts."""
    data = stereo("red", "blue")
    assert {".mpo", ".jps"} <= image_suffixes().keys()
    assert check_image(data) == read_header(data) == ImageInfo("jpeg", 16, 8)
    assert decode_image(data)[4, 8].tolist() == [254, 0, 0]


@pytest.mark.parametrize(
    "kind", ["SPIDER", "IM", "PCX", "SGI", "TGA", "DDS", "MSP", "XBM", "ICO", "ICNS", "QOI", "AVIF"]
)
def test_formats_that_few_know(kind: str) -> None:
    mode = {"SPIDER": "F", "MSP": "1", "XBM": "1"}.get(kind, "RGB")
    buffer = io.BytesIO()
    Image.new(mode, (32, 32), 1).save(buffer, kind)
    info = check_image(buffer.getvalue())
    assert isinstance(info, ImageInfo)
    assert decode_image(buffer.getvalue()).shape == (info.height, info.width, 3)
    assert info.width == (1024 if kind == "ICNS" else 32)


def test_every_format_that_pillow_decodes_is_decoded() -> None:
    """List what is left out: formats that are only identified, rendered, or run by another program."""
    Image.init()
    assert set(Image.OPEN) - set(image_formats()) == {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"} & set(Image.OPEN)
    assert set(image_suffixes().values()) <= set(image_formats())
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in image_formats()}
    assert readable <= image_suffixes().keys()


@pytest.mark.parametrize("kind", ["qoi", "plain ppm"])
def test_images_that_take_pillow_minutes_are_refused(kind: str) -> None:
    side = int(MAX_PIXELS_IN_PYTHON**0.5) + 1
    data = b"P3 %d %d 255\n" % (side, side)
    if kind == "qoi":
        data = b"qoif" + struct.pack(">II", side, side) + b"\x03\0"
    assert check_image(data) == "too large: more than 17 million pixels"
    with pytest.raises(ImageError, match="too large"):
        decode_image(data)


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    """Check a small file that takes libjpeg minutes."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert isinstance(check_image(data), ImageInfo)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 5000 + data[-2:]
    assert str(check_image(many)).startswith("too many scans: 5,0")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_in_xmp_counts(orientation: int) -> None:
    """Check photos whose orientation a program stored in XMP only."""
    data = picture(3, size=(24, 16))
    xmp = f'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="{orientation}"/>'.encode()
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + data[2:]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))))
    assert np.array_equal(decode_image(turned), expected)
    assert decode_image(turned).shape == ((24, 16, 3) if orientation >= 5 else (16, 24, 3))
