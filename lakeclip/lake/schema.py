"""The columns of a lake that lakeclip writes, and how values from the outside become values in them.

Plain columns with a sentinel for "missing", for Deep Lake's nullable columns are slow to filter, and several captions
as JSON, for sequences of text cannot be read safely. Casts are checked here: Deep Lake's are silent (5.7 becomes 5).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from enum import IntEnum

#: What stands for a missing whole number. Below everything, so that `WHERE width > 50` leaves such rows out.
MISSING_INT = -(2**63)

#: name → Deep Lake type of the columns that every lake of ours has.
#: key: the sample's name in its source. image: the encoded bytes. format: "jpeg", "png", …. crc32: of the bytes, for
#: Deep Lake keeps no checksum. width, height: pixels as encoded, before EXIF turns them. text: the first caption.
#: captions: all of them, a JSON list.
COLUMNS: dict[str, str] = {
    "key": "text",
    "image": "bytes",
    "format": "text",
    "crc32": "int64",
    "width": "int32",
    "height": "int32",
    "text": "text",
    "captions": "text",
}
#: Which part of what was ingested a row is from: a tar's name, a folder's. With `key` it names a row for good.
SOURCE = "source"
#: Why a row cannot be trained on ('' where it can): its image was not downloaded, or did not decode. Only lakes with
#: such rows have the column, and reading for training leaves those rows out.
UNUSABLE = "unusable"

#: More metadata columns than this means that names are values.
MAX_METADATA_COLUMNS = 256


class Kind(IntEnum):
    """The types of metadata columns, each able to hold what the ones before it hold."""

    BOOL = 0
    INT = 1
    FLOAT = 2
    TEXT = 3

    @property
    def type_name(self) -> str:
        """Deep Lake's name of it."""
        return ("bool", "int64", "float64", "text")[self]

    @property
    def missing(self) -> str | int | float:
        """What stands for a missing value. A Bool column has no room for one: it becomes INT (1, 0, missing)."""
        return (False, MISSING_INT, math.nan, "")[self]


def kind_of(values: Iterable[object], at_least: Kind | None = None) -> Kind | None:
    """The narrowest kind that holds all of these values without loss; None if all are missing (None).

    Args:
        at_least: the kind the column already has.
    """
    kind, widest_int, gap = at_least, 0, False
    for value in values:
        if value is None:
            gap = True
            continue
        if isinstance(value, bool):
            own = Kind.BOOL
        elif isinstance(value, int):
            own = Kind.INT if MISSING_INT < value < 2**63 else Kind.TEXT
            widest_int = max(widest_int, abs(value))
        elif isinstance(value, float):
            own = Kind.FLOAT
        else:
            own = Kind.TEXT
        kind = own if kind is None else max(kind, own)
    if kind is Kind.BOOL and gap:
        return Kind.INT
    if kind is Kind.FLOAT and widest_int > 2**53:
        return Kind.TEXT
    return kind


def convert(value: object, kind: Kind) -> str | int | float:
    """A value as it is stored in a column of a kind that holds it. Lists and dictionaries become JSON."""
    if value is None:
        return kind.missing
    if kind is Kind.TEXT:
        return clean_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    assert isinstance(value, (bool, int, float)), "kind_of() sends everything else to TEXT"
    return (bool, int, float)[kind](value)


def clean_text(text: str) -> str:
    """Text that UTF-8 can hold: halves of surrogate pairs, from broken JSON or file names, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def metadata_column(name: str) -> str:
    """The column for a metadata value. Names of our own columns get `_meta`, as do those that then look like one."""
    stem = name
    while stem.endswith("_meta"):
        stem = stem.removesuffix("_meta")
    return f"{name}_meta" if stem in (*COLUMNS, SOURCE, UNUSABLE) else name or "_meta"


def dump_captions(captions: Iterable[str]) -> str:
    """Captions as they are stored."""
    return json.dumps([clean_text(caption) for caption in captions], ensure_ascii=False)


def load_captions(stored: str | None) -> tuple[str, ...]:
    """Captions in a `captions` column: a JSON list of text, or, in a lake from elsewhere, one caption as it stands."""
    if not stored:
        return ()
    if stored.startswith("["):
        try:
            values = json.loads(stored)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return tuple(values)
    return (stored,)
