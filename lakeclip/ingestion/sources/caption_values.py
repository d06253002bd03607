"""Caption files: one caption a line, in whatever encoding they were saved."""

from __future__ import annotations

import re


def parse_captions(data: bytes) -> tuple[str, ...]:
    """The captions in a text file: its lines, stripped, without the blank ones."""
    return tuple(line for raw in re.split(r"[\r\n]+", decode_text(data)) if (line := raw.strip()))


def decode_text(data: bytes) -> str:
    """UTF-8 with or without a mark, UTF-16 with one, else Western European (cp1252, or latin-1 where that has gaps)."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")
