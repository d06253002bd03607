"""Read one version of a lake, by row index, from any process."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.lake import engine
from lakeclip.lake.caption_template import CaptionTemplate
from lakeclip.lake.columns import find_caption_column, find_image_column, is_readable, list_columns, type_names
from lakeclip.lake.query import is_select, row_weights, safe_clause, select_rows
from lakeclip.lake.remote.rows import RemoteRows
from lakeclip.lake.rows import Indices, Row, RowSource
from lakeclip.lake.schema import COLUMNS, MISSING_INT, UNUSABLE, load_captions
from lakeclip.lake.selection import Selection

# The two uses of Deep Lake's handles; see `Lake._handle`.
_IMAGES, _OTHERS = "images", "others"


def open_lake(
    path: str | os.PathLike[str],
    query: str | None = None,
    *,
    token: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    caption_template: str | None = None,
    filter_nsfw: bool = False,
    weights: str | None = None,
    extra_columns: Sequence[str] = (),
    include_unusable: bool = False,
    version: str | None = None,
) -> Lake:
    """Open a Deep Lake dataset for reading.

    Args:
        path: a folder, or an address (s3://…, hub://…); `@branch` or `@tag` may follow.
        query: keep the rows for which this WHERE clause holds, such as `NSFW == 'UNLIKELY'`; or a SELECT of columns and
            rows of this lake.
        token: Activeloop token. It is kept only in the environment variable ACTIVELOOP_TOKEN, where worker processes
            find it; without this argument, the variable's value is used.
        image_column: column with the encoded images; by default found by name and type.
        caption_column: column with the captions, likewise; several, separated by commas, are joined.
        caption_template: captions made from columns, `a photo of {label}, {text}`; see `CaptionTemplate`.
        filter_nsfw: keep only the rows that LAION's classifier rated as safe; see `safe_clause`.
        weights: a column or an expression over columns with the sampling weight of each row in training.
        extra_columns: columns to read with every row (`Row.extras`).
        include_unusable: also keep rows whose image is not downloaded yet, and rows that were marked as unusable.
        version: "ID@VERSION", the version to read (`Lake.version`); the newest by default.

    Raises:
        LakeError: the lake or its version does not exist, cannot be reached, is damaged or lacks a column, or the query
            is invalid.
    """
    engine.set_token(token)
    path = engine.normalize_path(path)
    dataset = engine.open_version(path, version) if version else engine.open_dataset(path)
    conditions = [safe_clause(dataset, path)] if filter_nsfw else []
    # The whole clause, for `Lake.query`. (For a SELECT, only the configuration records the filter.)
    clause = f"{conditions[0]} and ({query}\n)" if query and conditions else query or "".join(conditions) or None
    clause = query if is_select(query) else clause
    types = type_names(dataset)
    if not include_unusable and types.get(UNUSABLE) == "text":
        conditions.append(f"{UNUSABLE} == ''")
    selected = select_rows(dataset, query, path, conditions=conditions) if query is not None or conditions else None
    rows = Selection(selected.rows, len(dataset)) if selected is not None else None
    names = (selected.columns if selected is not None else None) or {name: name for name in types}
    lake = Lake(path, dataset, clause, rows, names, image_column, caption_column)
    if weights is not None:
        all_weights = row_weights(dataset, weights, path)
        lake.weights = all_weights[rows[np.arange(len(rows))]] if rows is not None else all_weights
    for name in extra_columns:
        lake.require(name)
    lake.extra_columns = tuple(extra_columns)
    if caption_template is not None:
        lake.template = CaptionTemplate(caption_template, lake.columns, path)
    elif caption_column is not None and caption_column not in lake.columns and "," in caption_column:
        joined = " ".join(f"{{{name.strip()}}}" for name in caption_column.split(","))
        lake.template = CaptionTemplate(joined, lake.columns, path)
    return lake


class Lake(RowSource):
    """The rows of one version of a lake, or those that a query chose. Returned by `open_lake`.

    A pickled copy holds the path, the version and the row numbers, and opens the dataset itself: Deep Lake's handles
    do not keep their version when pickled, and its views run their query again.

    Attributes:
        path: the dataset's path.
        query: the WHERE clause or SELECT that chose the rows, or None.
        version: "ID@VERSION" of the dataset.
        columns: name → type of every column, or of those that a SELECT names.
        template: makes the captions from columns; None if the captions are a column.
        extra_columns: columns that are read with every row.
        weights: (rows,) sampling weights; None if all rows are drawn equally often, and in other processes.
    """

    is_queryable: ClassVar[bool] = True

    def __init__(
        self,
        path: str,
        dataset: Any,
        query: str | None,
        rows: Selection | None,
        names: dict[str, str],
        image_column: str | None,
        caption_column: str | None,
    ) -> None:
        self.path = path
        self.query = query
        self.version = f"{dataset.id}@{dataset.version}"
        self.template: CaptionTemplate | None = None
        self._stored = type_names(dataset)
        self._names = names
        self.columns = {name: self._stored[stored] for name, stored in names.items()}
        self._num_total_rows = len(dataset)
        self.is_remote = engine.is_remote(path)
        self._remote = RemoteRows(path, self.version, self._stored, dataset) if self.is_remote else None
        self._rows = rows
        self._chosen_columns = (image_column, caption_column)
        self._handles: dict[str, Any] = {_OTHERS: dataset}
        self._process = os.getpid()

    @property
    def num_total_rows(self) -> int:
        """Number of rows in the lake, before the query."""
        return self._num_total_rows

    def __len__(self) -> int:
        return self.num_total_rows if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        chosen = f", query={self.query!r}" if self.query is not None else ""
        return f"Lake({self.path!r}, rows={len(self):,} of {self.num_total_rows:,}{chosen})"

    def __getstate__(self) -> dict[str, object]:
        # The weights are needed for planning, in the main process, not for reading.
        return {**self.__dict__, "_handles": {}, "weights": None}

    def __enter__(self) -> Lake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the dataset. Reading opens it again."""
        self._handles = {}

    @cached_property
    def image_column(self) -> str:
        """Column with the encoded images.

        Raises:
            LakeError: no column is usable; the columns are listed.
        """
        return find_image_column(self.columns, self._chosen_columns[0], self.path)

    @cached_property
    def caption_column(self) -> str:
        """Column with the captions.

        Raises:
            LakeError: no column is usable; the columns are listed.
        """
        return find_caption_column(self.columns, self._chosen_columns[1], self.path)

    def read(self, indices: Indices, *, with_captions: bool = True) -> list[Row]:
        """Return the rows at these indices (0 … len-1), in this order; images as encoded, never decoded.

        Args:
            with_captions: False to leave the captions out, which also allows lakes that have none.

        Raises:
            LakeError: the rows cannot be read.
            IndexError: an index is out of range.
        """
        rows = self.base_rows(indices)
        self._prefetch(rows, with_captions)
        captions = self._captions(rows) if with_captions else [()] * len(rows)
        columns = [self._plain(name, rows) for name in self.extra_columns]
        images, damage = self._images(rows)
        extras = list(zip(*columns, strict=True)) or [()] * len(rows)
        return [Row(*values) for values in zip(rows.tolist(), images, captions, damage, extras, strict=True)]

    def prefetch(self, indices: Indices) -> None:
        """Start to fetch rows that will be read soon, and return at once. Does nothing for a local lake.

        All processes of a machine share what they fetch, so any of them may call it.
        """
        self._prefetch(self.base_rows(indices), with_captions=True)

    def _prefetch(self, rows: NDArray[np.int64], with_captions: bool) -> None:
        if self._remote is None:
            return
        texts = () if not with_captions else self.template.names if self.template else (self.caption_column,)
        columns = [self._names[name] for name in (*texts, *self.extra_columns)]
        checksums = ["crc32"] if self._has_checksums else []
        self._remote.prefetch([*columns, *checksums, self._names[self.image_column]], rows)

    def images(self, indices: Indices) -> list[bytes]:
        """Return the encoded images at these indices, without their captions, damaged or not."""
        return self.images_and_damage(indices)[0]

    def images_and_damage(self, indices: Indices) -> tuple[list[bytes], list[str]]:
        """Return the encoded images at these indices, and how each differs from the ingested one ('' if not)."""
        return self._images(self.base_rows(indices))

    def captions(self, indices: Indices) -> list[tuple[str, ...]]:
        """Return the captions at these indices, without their images."""
        return self._captions(self.base_rows(indices))

    def base_rows(self, indices: Indices) -> NDArray[np.int64]:
        """Return the row numbers in the whole lake of the rows at these indices."""
        positions = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(positions) and not (positions.min() >= 0 and positions.max() < len(self)):
            raise IndexError(f"rows {positions.min()} … {positions.max()} of {len(self)}")
        return positions if self._rows is None else self._rows[positions]

    def column(self, name: str) -> list[object]:
        """Return the values of one column, for every row; None for missing integers.

        Raises:
            LakeError: the column does not exist or cannot be read safely.
        """
        return self.values(name, np.arange(len(self)))

    def values(self, name: str, indices: Indices) -> list[object]:
        """Return the values of one column at these indices, as `column` does."""
        self.require(name)
        return self._plain(name, self.base_rows(indices))

    def require(self, name: str) -> None:
        """Raise if a column does not exist or cannot be read.

        Raises:
            LakeError: it does not exist, or cannot be read safely.
        """
        if name not in self.columns:
            raise LakeError(f"the lake at {self.path} has no column {name!r}", found=list_columns(self.columns))
        if not is_readable(self.columns[name]):
            raise LakeError(
                f"the column {name!r} of the lake at {self.path} cannot be read",
                found=f"type {self.columns[name]}, which crashes Deep Lake",
                next_step="store several texts as one JSON text",
            )

    def _plain(self, name: str, rows: NDArray[np.int64]) -> list[object]:
        values = self._fetch(self._names[name], rows)
        if self.columns[name] == "int64":
            return [None if value == MISSING_INT else value for value in values]
        return [value or "" for value in values] if self.columns[name] == "text" else values

    def __getitem__(self, index: int) -> dict[str, object]:
        """Return every column of one row, by name; without sequences of text, which cannot be read safely."""
        position = range(len(self))[index]
        return {name: self.values(name, [position])[0] for name, kind in self.columns.items() if is_readable(kind)}

    @property
    def dataset(self) -> Any:
        """Deep Lake dataset of this version, opened in this process."""
        return self._handle(_OTHERS)

    def _handle(self, use: str) -> Any:
        """Return the handle for one use.

        Images have one of their own: reading a number in between makes Deep Lake drop the image chunks that it holds,
        and the next image takes four times as long.
        """
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        if use not in self._handles:
            self._handles[use] = engine.open_version(self.path, self.version)
        return self._handles[use]

    @property
    def _has_checksums(self) -> bool:
        """True if lakeclip wrote the lake, or if it has the same columns."""
        has_columns = all(self._stored.get(name) == kind for name, kind in COLUMNS.items())
        return has_columns and self._names[self.image_column] == "image"

    def _images(self, rows: NDArray[np.int64]) -> tuple[list[bytes], list[str]]:
        """Return the images, and how each differs from the ingested one, by the checksums that lakeclip stores."""
        # Deep Lake returns None for an empty value.
        images = [data or b"" for data in self._fetch(self._names[self.image_column], rows)]
        damage = [""] * len(images)
        if self._has_checksums:
            for i, expected in enumerate(self._fetch("crc32", rows)):
                if (actual := zlib.crc32(images[i])) != expected:
                    damage[i] = f"checksum {actual:#x}, not {expected:#x}: the storage has changed its bytes"
        return images, damage

    def _captions(self, rows: NDArray[np.int64]) -> list[tuple[str, ...]]:
        if self.template is not None:
            return self.template.captions([self._plain(name, rows) for name in self.template.names])
        column = self._names[self.caption_column]
        stored = self._fetch(column, rows)
        if column.lower() == "captions":
            return [load_captions(text) for text in stored]
        return [(text,) if text else () for text in stored]

    def _fetch(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """Return the values of a column, in the order of `rows`."""
        if not len(rows):
            return []
        if self._remote is not None:
            return self._remote.values(name, rows)
        encoded = self._stored[name] in ("image", "link[image]")
        column = self._handle(_IMAGES if encoded or self._stored[name] == "bytes" else _OTHERS)[name]
        first, last = int(rows.min()), int(rows.max()) + 1
        # Reading a slice costs less than reading a list of half of its rows.
        is_dense = last - first <= 2 * len(rows)
        read_rows = np.arange(first, last) if is_dense else np.unique(rows)
        where: slice | list[int] = slice(first, last) if is_dense else read_rows.tolist()
        try:
            values = column.get_bytes(where) if encoded else column[where]
        except Exception as error:
            # After a failed read the handle can never read that chunk again.
            self._handles = {}
            engine.require_folder(self.path)
            raise LakeError(
                f"rows {first} … {last - 1} of the lake at {self.path} cannot be read",
                found=engine.one_line(error),
                next_step="its storage is damaged: copy or ingest the lake again",
            ) from None
        plain = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)
        return [plain[i] for i in np.searchsorted(read_rows, rows).tolist()]
