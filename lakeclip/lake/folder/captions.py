"""Caption files: one caption per line, in any usual encoding."""

from __future__ import annotations

import re

from lakeclip.lake.encodings import TextDecoder


def parse_captions(data: bytes, decoder: TextDecoder | None = None) -> tuple[str, ...]:
    """Return the captions in a text file: its lines, stripped, without blank ones.

    Args:
        data: the content of the file.
        decoder: decoder of all texts of the same folder or archive; one text alone may be too short to be recognized.
    """
    return tuple(line for raw in re.split(r"[\r\n]+", decode_text(data, decoder)) if (line := raw.strip()))


def decode_text(data: bytes, decoder: TextDecoder | None = None) -> str:
    """Decode a text: as its mark says, or as UTF-8, or in the encoding that is detected. See `parse_captions`."""
    return (decoder or TextDecoder()).decode(data)
