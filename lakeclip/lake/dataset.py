"""Reading a lake: rows by number, of one version of it, in any process."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake import engine
from lakeclip.lake.columns import find_caption_column, find_image_column, is_readable, list_columns, type_names
from lakeclip.lake.query import select_rows
from lakeclip.lake.remote import RemoteRows
from lakeclip.lake.rows import Row
from lakeclip.lake.schema import COLUMNS, MISSING_INT, load_captions


def open_lake(
    path: str | os.PathLike[str],
    query: str | None = None,
    *,
    token: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Lake:
    """Open a Deep Lake dataset for reading.

    Args:
        path: a folder, or an address (s3://…, hub://…); `@branch` or `@tag` may follow.
        query: keep the rows for which this WHERE clause holds, such as `NSFW == 'UNLIKELY'`.
        token: Activeloop token. It goes into the environment variable ACTIVELOOP_TOKEN, where worker processes find it,
            and nowhere else; without it, the variable's value is used.
        image_column: column with the encoded images, if not the one that its name and type suggest.
        caption_column: column with the captions, likewise.

    Raises:
        LakeError: there is no lake, it cannot be reached, is damaged, or the query is wrong.
    """
    engine.keep_token(token)
    normal = engine.normal_path(path)
    dataset = engine.open_dataset(normal)
    rows = select_rows(dataset, query, normal) if query is not None else None
    return Lake(normal, dataset, query, rows, image_column, caption_column)


class Lake:
    """Rows of one version of a lake (a `RowSource`): all of them, or those that a query chose. Made by `open_lake`.

    A copy in another process holds the path, the version and the row numbers, and opens the dataset itself: Deep Lake's
    own handles are not pinned to a version when pickled, and its views run their query again.

    Attributes:
        path: the dataset's path.
        query: the WHERE clause that chose the rows, or None.
        version: "ID@VERSION" of the dataset.
        columns: name → type of every column.
        total_rows: rows in the lake, before the query.
    """

    def __init__(
        self,
        path: str,
        dataset: Any,
        query: str | None,
        rows: NDArray[np.int64] | None,
        image_column: str | None,
        caption_column: str | None,
    ) -> None:
        self.path = path
        self.query = query
        self.version = f"{dataset.id}@{dataset.version}"
        self.columns = type_names(dataset)
        self.total_rows = len(dataset)
        is_remote = engine.is_remote(path)
        self._remote = RemoteRows(path, self.version, self.columns, dataset) if is_remote else None
        self._rows = rows
        self._wanted = (image_column, caption_column)
        self._handle: Any = dataset
        self._process = os.getpid()

    def __len__(self) -> int:
        return self.total_rows if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        chosen = f", query={self.query!r}" if self.query is not None else ""
        return f"Lake({self.path!r}, rows={len(self):,} of {self.total_rows:,}{chosen})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}

    def __enter__(self) -> Lake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the dataset. Reading again opens it again."""
        self._handle = None

    @cached_property
    def image_column(self) -> str:
        """Column with the encoded images.

        Raises:
            LakeError: there is none that can be used; the columns are listed.
        """
        return find_image_column(self.columns, self._wanted[0], self.path)

    @cached_property
    def caption_column(self) -> str:
        """Column with the captions.

        Raises:
            LakeError: there is none that can be used; the columns are listed.
        """
        return find_caption_column(self.columns, self._wanted[1], self.path)

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[Row]:
        """The rows at these indices (0 … len-1), in this order; images as encoded, never decoded.

        Raises:
            LakeError: the image's bytes are not those that were ingested, or the row cannot be read.
            IndexError: there is no such row.
        """
        rows = self.base_rows(indices)
        self.prefetch(indices)
        captions = self._captions(rows)
        return [Row(*pair) for pair in zip(rows.tolist(), self._images(rows), captions, strict=True)]

    def prefetch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Begin to fetch the rows at these indices, which `read` will be asked for, and return at once.

        Does nothing where the lake is on this machine. To be called in the process that will read them, or in any other
        of the same machine: they share what they fetch.
        """
        if self._remote is not None:
            checksums = ["crc32"] if self._has_checksums else []
            self._remote.prefetch([self.caption_column, *checksums, self.image_column], self.base_rows(indices))

    def images(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[bytes]:
        """The encoded images at these indices, without their captions: see `read`."""
        return self._images(self.base_rows(indices))

    def captions(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[tuple[str, ...]]:
        """The captions at these indices, without their images."""
        return self._captions(self.base_rows(indices))

    def base_rows(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Row numbers in the whole lake of the rows at these indices."""
        positions = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(positions) and not (positions.min() >= 0 and positions.max() < len(self)):
            raise IndexError(f"rows {positions.min()} … {positions.max()} of {len(self)}")
        return positions if self._rows is None else self._rows[positions]

    def column(self, name: str) -> list[object]:
        """The values of one column, for every row; None where a whole number is missing.

        Raises:
            LakeError: there is no such column, or it cannot be read safely.
        """
        return self.values(name, np.arange(len(self)))

    def values(self, name: str, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[object]:
        """The values of one column at these indices, as `column` gives them."""
        if name not in self.columns:
            raise LakeError(f"the lake at {self.path} has no column {name!r}", found=list_columns(self.columns))
        if not is_readable(self.columns[name]):
            raise LakeError(
                f"the column {name!r} of the lake at {self.path} cannot be read",
                found=f"type {self.columns[name]}, which makes Deep Lake crash",
                next_step="store several texts as one JSON text",
            )
        values = self._fetch(name, self.base_rows(indices))
        if self.columns[name] == "int64":
            return [None if value == MISSING_INT else value for value in values]
        return [value or "" for value in values] if self.columns[name] == "text" else values

    def __getitem__(self, index: int) -> dict[str, object]:
        """Every column of one row, by name; sequences of text are left out, for they cannot be read safely."""
        position = range(len(self))[index]
        return {name: self.values(name, [position])[0] for name, kind in self.columns.items() if is_readable(kind)}

    @property
    def dataset(self) -> Any:
        """The Deep Lake dataset, opened in this process, at this version."""
        if self._handle is None or self._process != os.getpid():
            self._handle = engine.open_version(self.path, self.version)
            self._process = os.getpid()
        return self._handle

    @property
    def _has_checksums(self) -> bool:
        """Whether this is a lake of ours, or one with the same columns, read as such."""
        known = all(self.columns.get(name) == kind for name, kind in COLUMNS.items())
        return known and self.image_column == "image"

    def _images(self, rows: NDArray[np.int64]) -> list[bytes]:
        images = [data or b"" for data in self._fetch(self.image_column, rows)]  # Deep Lake gives None for no bytes
        if self._has_checksums:
            for row, data, expected in zip(rows.tolist(), images, self._fetch("crc32", rows), strict=True):
                if zlib.crc32(data) != expected:
                    raise LakeError(
                        f"row {row} of the lake at {self.path} is damaged",
                        found=f"its {self.image_column} has checksum {zlib.crc32(data):#x}, not {expected:#x}",
                        next_step="the storage has changed the data: ingest it again, or leave the row out by a query",
                    )
        return images

    def _captions(self, rows: NDArray[np.int64]) -> list[tuple[str, ...]]:
        stored = self._fetch(self.caption_column, rows)
        if self.caption_column.lower() == "captions":
            return [load_captions(text) for text in stored]
        return [(text,) if text else () for text in stored]

    def _fetch(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """Values of a column, in the order of `rows`. A slice costs less than a list of half the rows in it."""
        if not len(rows):
            return []
        if self._remote is not None:
            return self._remote.values(name, rows)
        column = self.dataset[name]
        encoded = self.columns[name] in ("image", "link[image]")
        first, last = int(rows.min()), int(rows.max()) + 1
        dense = last - first <= 2 * len(rows)
        wanted = np.arange(first, last) if dense else np.unique(rows)
        where: slice | list[int] = slice(first, last) if dense else wanted.tolist()
        try:
            values = column.get_bytes(where) if encoded else column[where]
        except Exception as error:
            # A failed read leaves the handle unable to read that chunk ever again.
            self._handle = None
            raise LakeError(
                f"rows {first} … {last - 1} of the lake at {self.path} cannot be read",
                found=engine.one_line(error),
            ) from None
        plain = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)
        return [plain[place] for place in np.searchsorted(wanted, rows).tolist()]
