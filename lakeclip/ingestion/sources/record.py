"""Rows of tables, independent of the file format."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class Record(NamedTuple):
    """A row of a table, or the reason why it cannot be read.

    Attributes:
        key: row number, from 0; "" if the file itself is damaged.
        name: location for messages, such as "row 3" or "line 5"; "" if the file itself is damaged.
        values: column → value, or the reason why the row cannot be read.
        num_rows: number of rows that this stands for, if the file is damaged; 0 if it is unknown.
    """

    key: str
    name: str
    values: dict[str, object] | str
    num_rows: int = 1


@runtime_checkable
class Table(Protocol):
    """A file of rows.

    Attributes:
        columns: name → type, as `column_roles.infer_roles` calls the types. Columns may be added while it is read.
        position: bytes of the file that have been read.
        is_complete: whether the file could be read to its end; known after reading.
        unreadable: columns that cannot be read and are left out, with their types.
    """

    # Read-only properties, so that a wrapper may delegate them.
    @property
    def columns(self) -> dict[str, str]: ...
    @property
    def position(self) -> int: ...
    @property
    def is_complete(self) -> bool: ...
    @property
    def unreadable(self) -> dict[str, str]: ...

    @property
    def sample(self) -> Sequence[Mapping[str, object]]:
        """Some rows, to infer the roles of columns from; values of columns with images may be absent."""

    def resolve(self, name: str) -> str:
        """Return the column that a user means by a name."""

    def notes(self) -> list[str]:
        """Describe how the file was read: what was guessed, and what was mended; complete after reading."""

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns; those in `texts` are captions and locations."""
