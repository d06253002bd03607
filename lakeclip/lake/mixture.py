"""Several lakes read as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import ConfigError
from lakeclip.lake.dataset import Lake
from lakeclip.lake.rows import Row

#: Between the lakes of a mixture, where one text names them all.
SEPARATOR = " + "


class Lakes:
    """Lakes one after another (a `RowSource`), each with its share of what is trained on.

    Attributes:
        parts: the lakes.
        shares: of each; they need not add up to 1.
        offsets: index of each lake's first row among all.
    """

    def __init__(self, parts: Sequence[Lake], shares: Sequence[float]) -> None:
        self.parts = list(parts)
        self.shares = list(shares)
        self.offsets = [0, *accumulate(len(part) for part in parts)][:-1]
        self._row_offsets = np.array([0, *accumulate(part.total_rows for part in parts)][:-1])
        self._ends = np.array(list(accumulate(len(part) for part in parts)))

    @property
    def path(self) -> str:
        """The lakes' paths and shares."""
        return SEPARATOR.join(f"{part.path}:{share:g}" for part, share in zip(self.parts, self.shares, strict=True))

    @property
    def version(self) -> str:
        """The lakes' versions."""
        return SEPARATOR.join(part.version for part in self.parts)

    @property
    def query(self) -> str | None:
        """The query, the same for all of them."""
        return self.parts[0].query

    @property
    def columns(self) -> dict[str, str]:
        """Columns that all of the lakes have, of the same type."""
        first, *others = (part.columns.items() for part in self.parts)
        return {name: kind for name, kind in first if all((name, kind) in other for other in others)}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[Row]:
        """The rows at these indices, in this order. A `Row.row` counts on from lake to lake: see `locate`."""
        positions = np.asarray(indices, np.int64).reshape(-1)
        which = np.searchsorted(self._ends, positions, "right")
        rows: list[Row | None] = [None] * len(positions)
        for index in np.unique(which).tolist():
            own = np.flatnonzero(which == index)
            offset = int(self._row_offsets[index])
            for place, row in zip(own, self.parts[index].read(positions[own] - self.offsets[index]), strict=True):
                rows[place] = row._replace(row=row.row + offset)
        return [row for row in rows if row is not None]

    @property
    def is_remote(self) -> bool:
        """Whether rows of any of them come over a network."""
        return any(part.is_remote for part in self.parts)

    def prefetch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """See `Lake.prefetch`."""
        positions = np.asarray(indices, np.int64).reshape(-1)
        which = np.searchsorted(self._ends, positions, "right")
        for index in np.unique(which).tolist():
            self.parts[index].prefetch(positions[which == index] - self.offsets[index])

    def locate(self, row: int) -> tuple[str, int]:
        """The lake and the row in it that a `Row.row` means."""
        index = int(np.searchsorted(self._row_offsets, row, "right")) - 1
        return self.parts[index].path, row - int(self._row_offsets[index])

    def column(self, name: str) -> list[object]:
        """The values of one column, for every row."""
        return [value for part in self.parts for value in part.column(name)]

    def __getitem__(self, index: int) -> dict[str, object]:
        index = range(len(self))[index]
        which = int(np.searchsorted(self._ends, index, "right"))
        return self.parts[which][index - self.offsets[which]]


def parse_share(name: str) -> tuple[str, float | None]:
    """A lake's path and its share: `a.lake:0.7` → ("a.lake", 0.7); None where there is none.

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
