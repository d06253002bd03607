"""Several lakes read as one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import ConfigError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.rows import Indices, Row, RowSource

#: Separates the lakes of a mixture in one text.
SEPARATOR = " + "


class LakeMixture(RowSource):
    """Lakes one after another, each with its share of every training batch.

    Attributes:
        path: the lakes' paths and shares.
        version: the lakes' versions.
        query: the query, the same for all of them.
        columns: those that all of the lakes have, with the same type.
    """

    is_queryable: ClassVar[bool] = True

    def __init__(self, lakes: Sequence[Lake], shares: Sequence[float]) -> None:
        self._lakes = list(lakes)
        self._shares = list(shares)
        self._ends = np.cumsum([len(lake) for lake in lakes])
        self._row_offsets = np.array([0, *accumulate(lake.num_total_rows for lake in lakes)])
        self.path = SEPARATOR.join(f"{lake.path}:{share:g}" for lake, share in zip(lakes, shares, strict=True))
        self.version = SEPARATOR.join(lake.version for lake in lakes)
        self.query = lakes[0].query
        first, *others = (lake.columns.items() for lake in lakes)
        self.columns = {name: kind for name, kind in first if all((name, kind) in other for other in others)}
        self.is_remote = any(lake.is_remote for lake in lakes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_total_rows(self) -> int:
        """Number of rows of all lakes before the query."""
        return int(self._row_offsets[-1])

    @property
    def parts(self) -> list[Lake]:
        """The lakes."""
        return self._lakes

    @property
    def shares(self) -> list[float]:
        """Share of each lake in every batch; they need not add up to 1."""
        return self._shares

    @property
    def offsets(self) -> list[int]:
        """Index of each lake's first row."""
        return [0, *self._ends.tolist()[:-1]]

    def read(self, indices: Indices, *, with_captions: bool = True) -> list[Row]:
        """Return the rows at these indices, in this order.

        `Row.row` counts the rows of all lakes; `locate` converts it to a lake and its row number.
        """
        rows: dict[int, Row] = {}
        for number, positions, own_indices in self._by_lake(indices):
            offset = int(self._row_offsets[number])
            own_rows = self._lakes[number].read(own_indices, with_captions=with_captions)
            for position, row in zip(positions.tolist(), own_rows, strict=True):
                rows[position] = row._replace(row=row.row + offset)
        return [rows[position] for position in range(len(rows))]

    def prefetch(self, indices: Indices) -> None:
        """Start to fetch rows of the remote lakes among them, and return at once."""
        for number, _, own_indices in self._by_lake(indices):
            self._lakes[number].prefetch(own_indices)

    def _by_lake(self, indices: Indices) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield the number of each lake that has some of the rows, their positions in `indices`, and their indices."""
        wanted = np.asarray(indices, np.int64).reshape(-1)
        numbers = np.searchsorted(self._ends, wanted, "right")
        for number in np.unique(numbers).tolist():
            positions = np.flatnonzero(numbers == number)
            yield number, positions, wanted[positions] - self.offsets[number]

    def locate(self, row: int) -> tuple[str, int]:
        """Return the path of the lake that a `Row.row` comes from, and its row number there."""
        number = int(np.searchsorted(self._row_offsets, row, "right")) - 1
        return self._lakes[number].path, row - int(self._row_offsets[number])

    def column(self, name: str) -> list[object]:
        """Return the values of one column, for every row."""
        return [value for lake in self._lakes for value in lake.column(name)]

    def __getitem__(self, index: int) -> dict[str, object]:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, "right"))
        return self._lakes[number][index - self.offsets[number]]


def parse_share(name: str) -> tuple[str, float | None]:
    """Split a lake's path from its share: `a.lake:0.7` → ("a.lake", 0.7); the share is None if none is given.

    Raises:
        ConfigError: the share is not above 0.
    """
    path, colon, share = name.rpartition(":")
    try:
        value = float(share)
    except ValueError:
        return name, None
    if not colon or not path:
        return name, None
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"the share of the lake {name} cannot be {share}", allowed="above 0, such as a.lake:0.7")
    return path, value
