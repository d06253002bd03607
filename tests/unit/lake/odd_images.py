"""Images as other programs write them and Pillow does not: PNGs and TIFFs from their bytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, bits: int = 16, chunks: bytes = b"") -> bytes:
    """Write a PNG of 16 bits with 1 to 4 channels, or of 1, 2, 4 or 8 bits with one; `chunks` precede the pixels."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    elif bits == 8:
        rows = [row.astype(np.uint8).tobytes() for row in pixels]
    else:
        shifts = [(row[:, None] >> np.arange(bits - 1, -1, -1)) & 1 for row in pixels]
        rows = [np.packbits(levels.ravel().astype(np.uint8)).tobytes() for levels in shifts]
    header = struct.pack(">IIBBBBB", width, height, bits, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + data + png_chunk(b"IEND", b"")


def tiff(
    data: bytes, width: int, height: int, bits: tuple[int, ...], order: str = "<", tags: dict[int, int] | None = None
) -> bytes:
    """Write a TIFF with one uncompressed strip.

    Args:
        bits: bits of each channel.
        order: "<" for little-endian, ">" for big-endian.
        tags: further tags of type SHORT, or other values of the usual ones.
    """
    values: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: bits,
        259: (1,),
        262: (2 if len(bits) >= 3 else 1,),
        273: (8,),
        277: (len(bits),),
        278: (height,),
        279: (len(data),),
        **{tag: (value,) for tag, value in (tags or {}).items()},
    }
    data += b"\0" * (len(data) % 2)
    extra = 8 + len(data)
    entries, blob = b"", b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(packed) > 4:
            blob, packed = blob + packed, struct.pack(f"{order}I", extra + len(blob))
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(values)) + entries + bytes(4)
    return magic + struct.pack(f"{order}I", extra + len(blob)) + data + blob + directory
