"""Colours: grey levels of every range, transparency of every kind, and the modes that Pillow cannot convert."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lakeclip.data.decode import EncodedImage, decode_image, rgb_pixels
from lakeclip.lake.images import check_image
from lakeclip.lake.rgb import level_range
from tests.unit.data.memory_source import encode
from tests.unit.lake.odd_images import png, png_chunk, tiff


def ramp(largest: int, channels: int = 1) -> np.ndarray:
    levels = np.linspace(0, largest, 64 * channels).round().astype(np.uint16)
    return levels.reshape(8, 8) if channels == 1 else levels.reshape(8, 8, channels)


def scaled(levels: np.ndarray, largest: float) -> np.ndarray:
    return np.rint(levels.astype(float) * 255 / largest).astype(np.uint8)


def grey(data: bytes) -> np.ndarray:
    """Decode an image and return its red channel, which must equal the others."""
    assert not isinstance(check_image(data), str)
    pixels = decode_image(data)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    ("largest", "white"),
    [
        *((200, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (3000, 4095), (4095, 4095)),
        *((4096, 16383), (16383, 16383), (16384, 65535), (65535, 65535)),
    ],
)
def test_the_smallest_usual_range_that_holds_all_levels(largest: int, white: int) -> None:
    levels = ramp(largest)
    expected = scaled(levels, white)
    assert np.array_equal(grey(png(levels)), expected)
    for order in "<>":
        assert np.array_equal(grey(tiff(levels.astype(f"{order}u2").tobytes(), 8, 8, (16,), order)), expected)
    assert np.array_equal(rgb_pixels(Image.fromarray(levels.astype(np.int32)))[..., 0], expected)
    assert np.array_equal(rgb_pixels(Image.fromarray(levels))[..., 1], expected)


@pytest.mark.parametrize(
    ("largest", "bits", "white"), [(4095, 16, 65535), (300, 12, 4095), (60_000, 12, 65535), (77, 8, 255)]
)
def test_a_png_may_declare_its_bits(largest: int, bits: int, white: int) -> None:
    levels = ramp(largest)
    assert np.array_equal(grey(png(levels, chunks=png_chunk(b"sBIT", bytes([bits])))), scaled(levels, white))


def test_a_tiff_may_declare_its_range() -> None:
    levels = ramp(900) + 100
    stored = levels.astype("<u2").tobytes()
    declared = grey(tiff(stored, 8, 8, (16,), tags={340: 100, 341: 2100}))
    assert np.array_equal(declared, scaled(levels - 100, 2000))
    wrong = grey(tiff(stored, 8, 8, (16,), tags={340: 500, 341: 700}))
    assert np.array_equal(wrong, scaled(levels, 1023))


def test_a_tiff_of_12_bits_has_12_bits_however_dark() -> None:
    levels = np.array([[0, 15], [16, 240]])
    packed = b"".join(((first << 12) | second).to_bytes(3, "big") for first, second in levels.tolist())
    assert np.array_equal(grey(tiff(packed, 2, 2, (12,))), scaled(levels, 4095))


def test_a_tiff_in_which_white_is_zero() -> None:
    levels = ramp(4095)
    assert np.array_equal(
        grey(tiff(levels.astype("<u2").tobytes(), 8, 8, (16,), tags={262: 0})), 255 - scaled(levels, 4095)
    )


def test_a_pgm_declares_its_range() -> None:
    levels = ramp(1000)
    for white in (2000, 4095, 40_000):
        data = b"P5 8 8 %d\n" % white + levels.astype(">u2").tobytes()
        assert np.abs(grey(data).astype(int) - scaled(levels, white)).max() <= 1
    assert np.array_equal(grey(b"P5 8 8 65535\n" + levels.astype(">u2").tobytes()), scaled(levels, 1023))


def test_a_jpeg_2000_declares_its_range() -> None:
    levels = ramp(4095)
    data = encode(Image.fromarray(levels), "jpeg2000")
    assert np.array_equal(grey(data), scaled(levels, 4095))
    # Pillow only writes 8 and 16 bits. The middle of the range is stored as 0, so that another range moves all levels.
    dark = ramp(300)
    data = encode(Image.fromarray(dark + 2**15 - 2**11), "jpeg2000")
    bits = data.index(b"\xff\x4f\xff\x51") + 42
    assert data[bits] == 15
    twelve = data[:bits] + bytes([11]) + data[bits + 1 :]
    assert np.abs(grey(twelve).astype(int) - scaled(dark, 4095)).max() <= 1


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_12_bits_in_a_png_of_16(channels: int) -> None:
    levels = ramp(4095, channels)
    if channels != 3:
        levels[..., -1] = 65535
    expected = scaled(levels, 4095)
    expected = expected[..., [0, 0, 0]] if channels == 2 else expected[..., :3]
    assert np.array_equal(decode_image(png(levels)), expected)
    if channels == 3:
        full = ramp(65535, channels)
        assert np.array_equal(decode_image(png(full)), full >> 8), "Pillow keeps the upper byte"
        declared = png(levels, chunks=png_chunk(b"sBIT", b"\x10\x10\x10"))
        assert np.array_equal(decode_image(declared), scaled(levels, 65535))


@pytest.mark.parametrize("bits", [12, 16])
def test_an_opened_image_is_converted_as_its_file(bits: int) -> None:
    for channels in (1, 2, 3, 4):
        data = png(ramp(900, channels), chunks=png_chunk(b"sBIT", bytes([bits] * channels)))
        assert np.array_equal(rgb_pixels(Image.open(io.BytesIO(data))), decode_image(data))


@pytest.mark.parametrize("order", "<>")
def test_colours_of_12_bits_in_a_tiff_of_16(order: str) -> None:
    levels = ramp(4095, 3)
    data = tiff(levels.astype(f"{order}u2").tobytes(), 8, 8, (16, 16, 16), order)
    assert np.array_equal(decode_image(data), scaled(levels, 4095))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_level_of_a_png_is_white(bits: int) -> None:
    levels = np.arange(64).reshape(8, 8) % 2**bits
    hidden = min(2**bits - 1, 33) - (bits == 1)
    trns = png_chunk(b"tRNS", int(hidden).to_bytes(2, "big"))
    expected = scaled(levels, {16: 255}.get(bits, 2**bits - 1))
    assert np.array_equal(grey(png(levels, bits, trns)), np.where(levels == hidden, 255, expected))
    assert np.array_equal(grey(png(levels, bits)), expected)


def test_a_transparent_level_does_not_count_for_the_range() -> None:
    """Check an X-ray of 12 bits whose background is 65535 and transparent."""
    levels = ramp(4095)
    levels[0] = 65535
    expected = scaled(levels.clip(0, 4095), 4095)
    assert np.array_equal(grey(png(levels, chunks=png_chunk(b"tRNS", b"\xff\xff"))), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_of_a_png_is_white(bits: int) -> None:
    pixels = np.zeros((4, 4, 3), np.uint16) + (9 if bits == 8 else 0x0909)
    pixels[0, 0, 2] += 1  # not the transparent colour
    pixels[1, 1] = 200 if bits == 8 else 0xC8C8
    pixels[2] = 10 if bits == 8 else 0x0A0A
    trns = png_chunk(b"tRNS", pixels[0, 1].astype(">u2").tobytes())
    decoded = decode_image(png(pixels, bits, trns))
    hidden = (pixels == pixels[0, 1]).all(axis=2)
    assert (decoded[hidden] == 255).all()
    assert (decoded[~hidden] != 255).any(axis=1).all()
    assert decoded[1, 1].tolist() == [200] * 3
    assert decoded[0, 0, 0] == 9


@pytest.mark.parametrize("associated", [1, 2])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_of_a_tiff_is_laid_on_white(channels: int, associated: int) -> None:
    """Check both kinds of alpha, one of which (La) Pillow does not convert to RGB."""
    pixels = np.full((2, 2, channels), 100, np.uint8)
    pixels[0, :, -1], pixels[1, :, -1] = 255, 128
    data = tiff(pixels.tobytes(), 2, 2, (8,) * channels, tags={338: associated})
    decoded = decode_image(data)
    assert not isinstance(check_image(data), str)
    assert (decoded[0] == 100).all()
    expected = 100 * 128 / 255 + 127 if associated == 2 else 100 + 127
    assert np.abs(decoded[1] - expected).max() <= 2


@pytest.mark.parametrize("mode", ["La", "LA", "PA", "RGBa", "RGBA"])
def test_alpha_of_an_image_in_memory_is_laid_on_white(mode: str) -> None:
    image = Image.new("LA", (2, 1), (50, 255))
    image.putpixel((1, 0), (50, 0))
    image = image.convert(mode) if mode in ("La", "LA") else image.convert("RGBA").convert(mode)
    assert rgb_pixels(image)[0].tolist() == [[50] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_modes_are_converted_by_pillow(mode: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = (
        Image.fromarray(colours, "RGB").convert(mode)
        if mode != "LAB"
        else Image.frombytes("LAB", (7, 9), colours.tobytes())
    )
    assert np.array_equal(rgb_pixels(image), np.asarray(image.convert("RGB")))


def test_a_lab_tiff() -> None:
    data = tiff(bytes([128, 20, 250]) * 4, 2, 2, (8, 8, 8), tags={262: 8})
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data), expected)


def test_the_range_is_that_of_the_whole_image() -> None:
    levels = ramp(4095)
    levels[4:] = levels[4:] // 8  # a dark lower half
    assert np.array_equal(grey(png(levels))[4:], scaled(levels[4:], 4095))
    reduced = EncodedImage(png(levels)).pixels(2)
    assert np.array_equal(reduced, np.asarray(Image.fromarray(decode_image(png(levels))).reduce(2)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], (0.0, 1.0)),
        ([[0.0, 200.0]], (0.0, 255.0)),
        ([[0.0, 3000.0]], (0.0, 4095.0)),
        ([[-2.0, 6.0]], (-2.0, 6.0)),
        ([[3.0, 1e9]], (3.0, 1e9)),
        ([[0.5, np.inf, np.nan]], (0.0, 1.0)),
        ([[np.nan]], (0.0, 65535.0)),
    ],
)
def test_ranges_of_floats(values: list[list[float]], expected: tuple[float, float]) -> None:
    assert level_range(np.array(values, np.float32)) == expected
    pixels = rgb_pixels(Image.fromarray(np.array(values, np.float32)))
    assert pixels.dtype == np.uint8


def test_signed_levels_of_16_bits() -> None:
    """Check CT scans: from negative Hounsfield units the range is that of the image, else at most 15 bits."""
    levels = np.array([[-1000, 0], [1000, 3000]])
    stored = levels.astype("<i2").tobytes()
    assert grey(tiff(stored, 2, 2, (16,), tags={339: 2})).tolist() == [[0, 64], [128, 255]]
    bright = np.array([[0, 32767]])
    assert grey(tiff(bright.astype("<i2").tobytes(), 2, 1, (16,), tags={339: 2})).tolist() == [[0, 255]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 65535).flatmap(lambda high: st.lists(st.integers(0, high), min_size=4, max_size=4)),
    st.sampled_from(["png", "<", ">"]),
)
def test_levels_keep_their_order_and_are_never_clipped(values: list[int], kind: str) -> None:
    levels = np.array(values, np.uint16).reshape(2, 2)
    data = png(levels) if kind == "png" else tiff(levels.astype(f"{kind}u2").tobytes(), 2, 2, (16,), kind)
    low, high = level_range(levels)
    assert low == 0
    assert levels.max() <= high < max(256, 4 * (int(levels.max()) + 1))
    assert np.array_equal(grey(data), scaled(levels, high))


WRITABLE = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MPO", "MSP", "PCX", "PNG"),
    *("PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP", "XBM"),
)
MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"),
    *("I", "I;16", "I;16B", "F"),
)


@pytest.mark.parametrize("kind", WRITABLE)
def test_every_format_and_mode_that_pillow_writes(kind: str) -> None:
    """Compare with Pillow's conversion, laid on white; levels beyond 8 bits are in increasing order."""
    written = 0
    for mode in MODES:
        image = draw(mode)
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        written += 1
        data = buffer.getvalue()
        assert not isinstance(check_image(data), str), (kind, mode)
        opened = Image.open(io.BytesIO(data))
        opened.load()
        decoded = decode_image(data).astype(int)
        if opened.mode.startswith(("I", "F")):
            order = np.asarray(opened).ravel().argsort(kind="stable")
            assert (np.diff(decoded[..., 0].ravel()[order]) >= 0).all(), (kind, mode)
            assert decoded.max() > 100, (kind, mode)
            continue
        colours = np.asarray((opened.convert("LA") if opened.mode == "La" else opened).convert("RGBA")).astype(float)
        expected = colours[..., :3] * colours[..., 3:] / 255 + 255 - colours[..., 3:]
        assert np.abs(decoded - expected).max() <= 2, (kind, mode)
    assert written


def draw(mode: str) -> Image.Image:
    """Draw a gradient that is transparent on the right, as far as the mode allows."""
    x, y = np.meshgrid(np.arange(16), np.arange(16))
    if mode in ("I", "I;16", "I;16B", "F"):
        levels = x * 200 + y
        if mode == "I;16B":
            return Image.frombytes(mode, (16, 16), levels.astype(">u2").tobytes())
        return Image.fromarray(levels.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    pixels = np.stack([x * 16, y * 16, 255 - x * 16, np.where(x < 12, 255, 60)], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "LAB":
        return Image.frombytes("LAB", (16, 16), pixels[..., :3].tobytes())
    if mode in ("La", "LA"):
        return Image.merge("LA", (image.getchannel(0), image.getchannel(3))).convert(mode)
    if mode in ("PA", "RGBA", "RGBa"):
        return image.convert(mode)
    return image.convert("RGB").convert(mode)
