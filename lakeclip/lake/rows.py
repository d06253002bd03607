"""What the data room sees of a lake or a folder: rows by number, as encoded bytes and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Row(NamedTuple):
    """One pair as stored.

    Attributes:
        row: its row in the whole lake, the same with any query.
        image: the encoded image, byte for byte as it was ingested.
        captions: its captions, best first; empty where the lake has none for it.
        damage: how the stored image differs from what was ingested; '' where it does not, or where that is not known.
        also: the values of further columns that were asked for when the source was opened.
    """

    row: int
    image: bytes
    captions: tuple[str, ...]
    damage: str = ""
    also: tuple[object, ...] = ()


@runtime_checkable
class RowSource(Protocol):
    """Pairs by index. Picklable: a copy in another process reads the same rows of the same version."""

    @property
    def path(self) -> str:
        """Where the pairs are."""

    @property
    def version(self) -> str:
        """Changes whenever the pairs do: the same version and index give the same row."""

    @property
    def columns(self) -> dict[str, str]:
        """Column names and their types."""

    def __len__(self) -> int:
        """Number of rows after the query."""

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[Row]:
        """The rows at these indices (0 … len-1), in this order."""

    def column(self, name: str) -> list[object]:
        """The values of one column, for every row."""

    def __getitem__(self, index: int) -> dict[str, object]:
        """Every column of one row."""
