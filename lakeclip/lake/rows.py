"""The interface that lakes, mixtures and folders share: rows by index, as encoded bytes and captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]


class Row(NamedTuple):
    """An image-caption pair as stored.

    Attributes:
        row: its row number in the whole lake; the query does not change it.
        image: the encoded image, byte for byte as it was ingested.
        captions: best first; empty if the row has none.
        damage: how the stored image differs from the ingested one; '' if it does not, or if the lake has no checksums.
        extras: values of the source's `extra_columns`, in their order.
    """

    row: int
    image: bytes
    captions: tuple[str, ...]
    damage: str = ""
    extras: tuple[object, ...] = ()


class RowSource(ABC):
    """Image-caption pairs by index. Picklable: a copy in another process reads the same rows of the same version.

    The defaults describe one local source without a query. A subclass sets `path`, `version` and `columns`.

    Attributes:
        path: the folder or address of the pairs.
        version: changes whenever the pairs change; the same version and index give the same row.
        columns: name → type of each column.
        query: the WHERE clause or SELECT that chose the rows, or None.
        extra_columns: names of the columns that are read with every row (`Row.extras`).
        weights: (rows,) how often to draw each row in training; None if all rows are drawn equally often.
        is_remote: True if rows are read over a network.
        is_queryable: False for sources that have no rows but those they give, such as folders.
    """

    path: str
    version: str
    columns: dict[str, str]
    query: str | None = None
    extra_columns: tuple[str, ...] = ()
    weights: NDArray[np.float32] | None = None
    is_remote: bool = False
    is_queryable: ClassVar[bool] = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows after the query."""

    @abstractmethod
    def read(self, indices: Indices, *, with_captions: bool = True) -> list[Row]:
        """Return the rows at these indices (0 … len-1), in this order.

        Args:
            with_captions: False to leave the captions out, which also allows sources that have none.
        """

    @abstractmethod
    def column(self, name: str) -> list[object]:
        """Return the values of one column, for every row."""

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, object]:
        """Return every column of one row."""

    @property
    def num_total_rows(self) -> int:
        """Number of rows before the query."""
        return len(self)

    @property
    def parts(self) -> Sequence[RowSource]:
        """Sources of a mixture; the source itself if it is not a mixture."""
        return [self]

    @property
    def shares(self) -> Sequence[float]:
        """Share of each part in every batch; they need not add up to 1."""
        return [1.0]

    @property
    def offsets(self) -> Sequence[int]:
        """Index of each part's first row."""
        return [0]

    def locate(self, row: int) -> tuple[str, int]:
        """Return the path of the part that a `Row.row` comes from, and its row number there."""
        return self.path, row

    def prefetch(self, indices: Indices) -> None:  # noqa: B027 (optional)
        """Start to fetch rows that will be read soon, and return at once. Does nothing for a local source."""
