"""Images written as text in the cells of tables: base64, data: URIs, hexadecimal digits, Python's `b'…'`."""

from __future__ import annotations

import ast
import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

#: First bytes of image files.
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\0\0\x01\0",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"8BPS",
    b"qoif",
)
_DATA_URI = re.compile(r"\s*data:(?P<type>[^,;]*)(?P<parameters>(;[^,;]*)*),", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{24,}={0,2}\s*")
_HEX = re.compile(r"(?:0x|\\x)?(?:[0-9a-fA-F]{2}){12,}\s*")


def is_image(data: bytes) -> bool:
    """Return whether bytes begin as image files do."""
    if data.startswith(_SIGNATURES):
        return True
    return (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1")


def is_embedded_image(text: str) -> bool:
    """Return whether a text is an image, not the name of one. Only its start is examined."""
    start = text.lstrip()[:96]
    if start[:5].lower() == "data:":
        return _DATA_URI.match(start) is not None
    if len(start) < 24:
        return False
    if start.startswith(("b'", 'b"')):
        return _python_bytes(start) is not None
    compact = re.sub(r"\s", "", start)[:64]
    return is_image(_from_hex(compact) or b"") or is_image(_from_base64(compact[: len(compact) // 4 * 4]) or b"")


def decode_image(text: str) -> bytes | str:
    """Return the bytes of an image that is written as text, or why it cannot be decoded."""
    text = text.strip()
    if match := _DATA_URI.match(text):
        body = text[match.end() :]
        if "base64" not in match["parameters"].lower():
            return unquote_to_bytes(body)
        data = _from_base64(unquote_to_bytes(body).decode("ascii", "replace"))
        return data if data else "broken data: URI: its base64 text is damaged"
    if text.startswith(("b'", 'b"')):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        return value if isinstance(value, bytes) else "broken bytes: not a Python literal"
    digits = _from_hex(text) if _HEX.fullmatch(text) else None
    if digits is not None and is_image(digits):
        return digits
    return _from_base64(text) or "broken base64: the text is damaged"


def _from_base64(text: str) -> bytes | None:
    text = re.sub(r"\s", "", text).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _from_hex(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text.removeprefix("0x").removeprefix("\\x"))
    except ValueError:
        # The start of a text may end within a byte.
        return bytes.fromhex(text[:24]) if re.fullmatch(r"[0-9a-fA-F]{24}.", text[:25]) else None


def _python_bytes(start: str) -> bytes | None:
    """Decode the start of Python's notation of bytes, if it is an image."""
    body = start[2:].encode("latin-1", "replace")
    data = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), body)
    data = data.replace(b"\\r", b"\r").replace(b"\\n", b"\n").replace(b"\\0", b"\0")
    return data if is_image(data) else None
