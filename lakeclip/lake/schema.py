"""The columns of a lake that lakeclip writes, and the conversion of source values to column values.

Missing values are sentinels, because Deep Lake's nullable columns are slow to filter. Several captions are stored as
JSON, because sequences of text cannot be read safely. Casts are checked here: Deep Lake's are silent (5.7 becomes 5).
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable
from enum import IntEnum

from lakeclip.lake.values import clean_text as clean_text
from lakeclip.lake.values import is_storable_number

#: Stands for a missing integer. It is the smallest one, so that `WHERE width > 50` excludes such rows.
MISSING_INT = -(2**63)

#: name → Deep Lake type of the columns of every lake that lakeclip writes.
#: key: the sample's name in its source. image: the encoded bytes. format: "jpeg", "png", …. crc32: of the bytes, since
#: Deep Lake has no checksums. width, height: pixels as encoded, before EXIF turns them. text: the first caption.
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
#: The part of the source that a row is from: the name of a tar or a folder. With `key` it identifies a row.
SOURCE = "source"
#: Why a row cannot be used for training ('' if it can): its image was not downloaded or cannot be decoded. Only lakes
#: with such rows have the column, and reading for training excludes those rows.
UNUSABLE = "unusable"

#: More metadata columns than this mean that values were used as names.
MAX_METADATA_COLUMNS = 256
#: Limit on the size of a column's name in UTF-8.
MAX_NAME_BYTES = 255
#: Characters that a quoted name in a query cannot contain.
_UNQUOTABLE = re.compile(r'["\x00-\x1f\x7f]')


class Kind(IntEnum):
    """A type of metadata columns; each can hold the values of all types before it."""

    BOOL = 0
    INT = 1
    FLOAT = 2
    TEXT = 3

    @property
    def type_name(self) -> str:
        """Name of the type in Deep Lake."""
        return ("bool", "int64", "float64", "text")[self]

    @property
    def missing(self) -> str | int | float:
        """Sentinel for a missing value. BOOL has no room for one: such a column becomes INT (1, 0, missing)."""
        return (False, MISSING_INT, math.nan, "")[self]


def kind_of(values: Iterable[object], at_least: Kind | None = None) -> Kind | None:
    """Return the narrowest kind that holds all of these values without loss; None if all are missing (None).

    Numbers that no column can hold (NaN, infinite ones, see `values.MAX_FLOAT`) are missing too.

    Args:
        values: what `values.plain_value` returns.
        at_least: the kind the column already has.
    """
    kind, largest_int, has_missing, has_float = at_least, 0, False, False
    for value in values:
        if _is_missing(value):
            has_missing = True
            has_float = has_float or value is not None
            continue
        if isinstance(value, bool):
            value_kind = Kind.BOOL
        elif isinstance(value, int):
            value_kind = Kind.INT if MISSING_INT < value < 2**63 else Kind.TEXT
            largest_int = max(largest_int, abs(value))
        elif isinstance(value, float):
            value_kind = Kind.FLOAT
        else:
            value_kind = Kind.TEXT
        kind = value_kind if kind is None else max(kind, value_kind)
    if kind is None and has_float:
        return Kind.FLOAT
    if kind is Kind.BOOL and has_missing:
        return Kind.INT
    if kind is Kind.FLOAT and largest_int > 2**53:
        return Kind.TEXT
    return kind


def convert(value: object, kind: Kind) -> str | int | float:
    """Convert a value to what a column of this kind stores. Lists and dictionaries become JSON."""
    if _is_missing(value):
        return kind.missing
    if kind is Kind.TEXT:
        return clean_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    assert isinstance(value, (bool, int, float)), "kind_of() sends everything else to TEXT"
    return (bool, int, float)[kind](value)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not is_storable_number(value))


def metadata_column(name: str) -> str:
    """Return the column for a metadata name; different names never share a column.

    Names that Deep Lake's queries cannot contain (with control characters or double quotes), broken ones and long ones
    are changed, and get a checksum. Names of lakeclip's own columns get `_meta`, and so do names that then look like
    one.
    """
    cleaned = _UNQUOTABLE.sub("_", clean_text(name))
    if len(cleaned.encode()) > MAX_NAME_BYTES:
        cleaned = cleaned.encode()[: MAX_NAME_BYTES - 9].decode(errors="ignore")
    if cleaned != name:
        cleaned += f"_{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
    stem = cleaned
    while stem.endswith("_meta"):
        stem = stem.removesuffix("_meta")
    return f"{cleaned}_meta" if stem in (*COLUMNS, SOURCE, UNUSABLE, "") else cleaned


def old_metadata_column(name: str) -> str:
    """Return the column that earlier versions of lakeclip chose for a metadata name: they did not change odd names."""
    cleaned = clean_text(name)
    stem = cleaned
    while stem.endswith("_meta"):
        stem = stem.removesuffix("_meta")
    return f"{cleaned}_meta" if stem in (*COLUMNS, SOURCE, UNUSABLE) else cleaned or "_meta"


def dump_captions(captions: Iterable[str]) -> str:
    """Convert captions to the stored text."""
    return json.dumps([clean_text(caption) for caption in captions], ensure_ascii=False)


def load_captions(stored: str | None) -> tuple[str, ...]:
    """Parse a `captions` column's text: a JSON list, or, in a lake that lakeclip did not write, one plain caption."""
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
