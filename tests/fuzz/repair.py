"""Repair of checksums after mutations, so that the fuzzer reaches the code behind the checks."""

from __future__ import annotations

import struct
import zlib

_BLOCK = 512


def png(data: bytes) -> bytes:
    """Correct the checksums of all PNG chunks whose lengths are valid."""
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
    """Correct the checksum of every tar block that looks like a header."""
    out = bytearray(data)
    for start in range(0, len(out) - _BLOCK + 1, _BLOCK):
        block = out[start : start + _BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(out)
