"""What a table yields, whatever its format."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol, runtime_checkable


class Record(NamedTuple):
    """One row of a table, or what is wrong with it.

    Attributes:
        key: its number among the rows, from 0; "" if something is wrong with the file itself.
        name: where it is, for people: "row 3", "line 5"; "" likewise.
        values: by column, or the reason why there are none.
    """

    key: str
    name: str
    values: dict[str, object] | str


@runtime_checkable
class Table(Protocol):
    """A file of rows.

    Attributes:
        columns: name → type, in the words of `roles.find_roles`.
        position: bytes of the file that have been read.
        whole: whether it could be read to its end; known once that has been reached.
    """

    columns: dict[str, str]
    position: int
    whole: bool

    def read(self, wanted: Collection[str]) -> Iterator[Record]:
        """The rows, with the values of these columns."""
