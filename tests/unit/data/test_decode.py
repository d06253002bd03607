"""Test decoding: images of every kind become RGB pixels or raise with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lakeclip.data.decode import EncodedImage, decode_image, orient, rgb_pixels
from lakeclip.errors import ImageError
from tests.unit.data.memory_source import encode, photo

PHOTO = photo(60, 90)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "bmp", "gif", "ppm"])
def test_lossless_formats(kind):
    data = encode(PHOTO, kind, **({"lossless": True} if kind == "webp" else {}))
    assert np.array_equal(decode_image(data), pillow(data))


JPEGS = [
    *((mode, {}) for mode in ("RGB", "L", "CMYK")),
    ("RGB", {"quality": 30}),
    ("RGB", {"subsampling": 0}),
    ("RGB", {"progressive": True}),
    ("RGB", {"keep_rgb": True}),
    ("CMYK", {"progressive": True}),
]


@pytest.mark.parametrize(("mode", "options"), JPEGS, ids=str)
def test_jpegs_of_every_colour_space(mode, options):
    """Guard against train-CLIP's conversion, which handled RGBA only: L, P, CMYK and 16-bit images failed."""
    data = encode(Image.fromarray(PHOTO).convert(mode), "jpeg", **options)
    decoded = decode_image(data)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pillow(data))


def test_inverted_cmyk_as_photoshop_writes_it():
    """Check inverted CMYK: Pillow writes Adobe's marker, and a decoder that ignores it returns a negative."""
    decoded = decode_image(encode(Image.fromarray(PHOTO).convert("CMYK"), "jpeg", quality=95))
    assert np.abs(decoded.astype(int) - PHOTO).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "CMYK"])
def test_opaque_modes(mode):
    image = Image.fromarray(PHOTO).convert(mode)
    kind = "tiff" if mode in ("YCbCr", "CMYK") else "png"
    assert np.array_equal(decode_image(encode(image, kind)), np.asarray(image.convert("RGB")))


def half_transparent(mode: str) -> Image.Image:
    """Return an image that is nearly black on the left and fully transparent on the right."""
    alpha = Image.new("L", (90, 60), 0)
    alpha.paste(255, (0, 0, 45, 60))
    image = Image.new("RGB", (90, 60), (10, 10, 10))
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_composited_on_white(mode):
    assert_white_on_the_right(decode_image(encode(half_transparent(mode), "png")))


@pytest.mark.parametrize("mode", ["PA", "RGBa"])
def test_transparency_in_modes_that_no_file_has(mode):
    assert_white_on_the_right(rgb_pixels(half_transparent("RGBA").convert(mode)))


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_transparent_colour(mode):
    image = Image.new(mode, (90, 60), 1)
    image.paste(0, (0, 0, 45, 60))
    if mode == "P":
        image.putpalette([10, 10, 10, 99, 99, 99])
        assert_white_on_the_right(decode_image(encode(image, "png", transparency=1)))
    else:
        assert_white_on_the_right(decode_image(encode(image.point([10, 77] + 254 * [0]), "png", transparency=77)))


def assert_white_on_the_right(pixels: np.ndarray) -> None:
    assert (pixels[:, :45] == 10).all()
    assert (pixels[:, 45:] == 255).all()


def test_half_transparent_is_half_white():
    assert decode_image(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "png"))[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode_image(encode(Image.fromarray(ramp), kind))
    assert np.array_equal(decoded[..., 0].ravel(), np.arange(256))
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_big_endian_sixteen_bits():
    ramp = np.linspace(0, 65535, 256).astype(">u2").reshape(16, 16)
    image = Image.frombytes("I;16B", (16, 16), ramp.tobytes())
    assert np.array_equal(decode_image(encode(image, "tiff"))[..., 1].ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[0, 255]], dtype=np.int32), [0, 255]),
        (np.array([[0, 65535]], dtype=np.int32), [0, 255]),
        (np.array([[-100, 300]], dtype=np.int32), [0, 255]),
        (np.array([[7, 7]], dtype=np.int32), [7, 7]),
        (np.array([[-7, -7]], dtype=np.int32), [0, 0]),
        (np.array([[0, 0.5]], dtype=np.float32), [0, 128]),
        (np.array([[0, 128]], dtype=np.float32), [0, 128]),
        (np.array([[0, np.nan]], dtype=np.float32), [0, 0]),
    ],
)
def test_grey_levels_beyond_8_bits(levels, expected):
    assert decode_image(encode(Image.fromarray(levels), "tiff"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode_image(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PHOTO, kind, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == ((90, 60, 3) if orientation >= 5 else (60, 90, 3))
    assert np.array_equal(decode_image(data), expected)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_impossible_orientation_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode_image(encode(PHOTO, "jpeg", exif=exif)).shape == (60, 90, 3)


def test_broken_exif_does_not_reject_the_image():
    data = bytearray(encode(PHOTO, "jpeg", exif=Image.Exif()))
    intact = encode(PHOTO, "jpeg")
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 10) + b"Exif\0\0II\xff\xff"
    data = intact[:2] + segment + intact[2:]
    assert np.array_equal(decode_image(bytes(data)), decode_image(intact))


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
def test_orient_keeps_pixels_and_swaps_sides(orientation, height, width):
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    oriented = orient(pixels, orientation)
    assert sorted(oriented.ravel()) == sorted(pixels.ravel())
    assert oriented.shape[:2] == ((width, height) if orientation >= 5 else (height, width))


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header claims this size but which has only a few bytes of data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encode(PHOTO, "jpeg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("make", [png_of_size, jpeg_of_size])
@pytest.mark.parametrize("side", [14_000, 30_000])
def test_decompression_bombs_are_rejected_by_their_header(make, side):
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(ImageError, match="too large"):
        decode_image(make(side, side))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "tiff", "bmp"])
def test_truncated_files_raise(kind):
    """Guard against crashes and half-grey images of damaged files."""
    data = encode(photo(200, 200), kind)
    with pytest.raises(ImageError) as error:
        decode_image(data[: len(data) // 2])
    assert error.value.found


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<html>" * 100])
def test_data_that_is_no_image_raises(data):
    with pytest.raises(ImageError, match="cannot be decoded") as error:
        decode_image(data)
    assert error.value.found
    assert "0x" not in str(error.value)


def test_stray_bytes_in_a_jpeg_are_harmless():
    data = encode(PHOTO, "jpeg")
    scan = data.index(b"\xff\xda")
    stray = data[:scan] + b"\x00\x00\x00" + data[scan:]
    assert np.array_equal(decode_image(stray), decode_image(data))
    assert np.array_equal(decode_image(data + b"trailing"), decode_image(data))


@settings(max_examples=150)
@given(
    st.sampled_from(["jpeg", "png", "gif", "webp", "tiff", "bmp"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=5),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_decode_or_raise(kind, damage):
    data = bytearray(encode(photo(20, 30), kind))
    for position, value in damage:
        data[int(position * len(data))] = value
    try:
        pixels = decode_image(bytes(data))
    except ImageError:
        return
    assert pixels.ndim == 3
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("kind", ["jpeg", "png", "cmyk"])
def test_reduced_decoding(reduction, kind):
    """Check that sizes are rounded up and that pixels are means of squares."""
    pixels = photo(131, 203)
    data = encode(Image.fromarray(pixels).convert("CMYK"), "jpeg") if kind == "cmyk" else encode(pixels, kind)
    decoded = EncodedImage(data).pixels(reduction)
    assert decoded.shape == (-(-131 // reduction), -(-203 // reduction), 3)
    means = np.asarray(Image.fromarray(decode_image(data)).reduce(reduction))
    assert np.abs(decoded[:-1, :-1].astype(int) - means[:-1, :-1]).mean() < 1.5
