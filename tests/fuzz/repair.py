"""Checksums made to hold again after bytes were changed, so that what lies behind them is reached."""

from __future__ import annotations

import struct
import zlib

_BLOCK = 512


def png(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums they need, as far as their lengths make sense."""
    out, start = bytearray(data[:8]), 8
    while start + 8 <= len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        end = start + 8 + length
        if end > len(data):
            break
        chunk = data[start + 4 : end]
        out += data[start : start + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        start = end + 4
    return bytes(out + data[start:])


def tar(data: bytes) -> bytes:
    """A tar in which every block that looks like a header has the checksum it needs."""
    out = bytearray(data)
    for start in range(0, len(out) - _BLOCK + 1, _BLOCK):
        block = out[start : start + _BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(out)
