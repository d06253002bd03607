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
from lakeclip.lake.query import is_select, row_weights, safe_clause, select_rows
from lakeclip.lake.remote.rows import RemoteRows
from lakeclip.lake.rows import Row
from lakeclip.lake.schema import COLUMNS, MISSING_INT, UNUSABLE, load_captions
from lakeclip.lake.selection import Selection
from lakeclip.lake.template import CaptionTemplate

# What a handle of Deep Lake's is used for.
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
    also: Sequence[str] = (),
    include_unusable: bool = False,
    version: str | None = None,
) -> Lake:
    """Open a Deep Lake dataset for reading.

    Args:
        path: a folder, or an address (s3://…, hub://…); `@branch` or `@tag` may follow.
        query: keep the rows for which this WHERE clause holds, such as `NSFW == 'UNLIKELY'`; or a whole SELECT of
            columns and rows of this lake.
        token: Activeloop token. It goes into the environment variable ACTIVELOOP_TOKEN, where worker processes find it,
            and nowhere else; without it, the variable's value is used.
        image_column: column with the encoded images, if not the one that its name and type suggest.
        caption_column: column with the captions, likewise; several, with commas between them, are joined.
        caption_template: captions made of columns, `a photo of {label}, {text}`: see `CaptionTemplate`.
        filter_nsfw: keep the rows that LAION's classifier held to be safe, and nothing more: see `safe_clause`.
        weights: a column, or an expression over columns, that says how often to draw each row in training.
        also: columns whose values come with every row that is read (`Row.also`).
        include_unusable: keep rows without an image too, whose addresses are still to be downloaded, and those that
            were marked as unusable.
        version: "ID@VERSION" to read it as it was then (`Lake.version`); the newest by default.

    Raises:
        LakeError: there is no lake, or not this version of it, it cannot be reached, is damaged, lacks a column, or the
            query is wrong.
    """
    engine.keep_token(token)
    normal = engine.normal_path(path)
    dataset = engine.open_version(normal, version) if version else engine.open_dataset(normal)
    conditions = [safe_clause(dataset, normal)] if filter_nsfw else []
    # One text that says what was chosen. (The filter of a SELECT's rows is said by the configuration alone.)
    said = f"{conditions[0]} and ({query}\n)" if query and conditions else query or "".join(conditions) or None
    said = query if is_select(query) else said
    types = type_names(dataset)
    if not include_unusable and types.get(UNUSABLE) == "text":
        conditions.append(f"{UNUSABLE} == ''")
    chosen = select_rows(dataset, query, normal, conditions=conditions) if query is not None or conditions else None
    rows = Selection(chosen.rows, len(dataset)) if chosen is not None else None
    names = (chosen.columns if chosen is not None else None) or {name: name for name in types}
    lake = Lake(normal, dataset, said, rows, names, image_column, caption_column)
    if weights is not None:
        every = row_weights(dataset, weights, normal)
        lake.weights = every[rows[np.arange(len(rows))]] if rows is not None else every
    for name in also:
        lake.require(name)
    lake.also = tuple(also)
    if caption_template is not None:
        lake.template = CaptionTemplate(caption_template, lake.columns, normal)
    elif caption_column is not None and caption_column not in lake.columns and "," in caption_column:
        joined = " ".join(f"{{{name.strip()}}}" for name in caption_column.split(","))
        lake.template = CaptionTemplate(joined, lake.columns, normal)
    return lake


class Lake:
    """Rows of one version of a lake (a `RowSource`): all of them, or those that a query chose. Made by `open_lake`.

    A copy in another process holds the path, the version and the row numbers, and opens the dataset itself: Deep Lake's
    own handles are not pinned to a version when pickled, and its views run their query again.

    Attributes:
        path: the dataset's path.
        query: the WHERE clause or SELECT that chose the rows, or None.
        version: "ID@VERSION" of the dataset.
        columns: name → type of every column, or of those that a SELECT named.
        total_rows: rows in the lake, before the query.
        template: makes the captions, where they are not simply a column.
        also: columns whose values come with every row that is read.
        weights: (rows,) how often to draw each row, where that differs.
    """

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
        self.also: tuple[str, ...] = ()
        self._stored = type_names(dataset)
        self._names = names
        self.columns = {name: self._stored[stored] for name, stored in names.items()}
        self.total_rows = len(dataset)
        is_remote = engine.is_remote(path)
        self._remote = RemoteRows(path, self.version, self._stored, dataset) if is_remote else None
        self._rows = rows
        self._wanted = (image_column, caption_column)
        self.weights: NDArray[np.float32] | None = None
        self._handles: dict[str, Any] = {_OTHERS: dataset}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self.total_rows if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        chosen = f", query={self.query!r}" if self.query is not None else ""
        return f"Lake({self.path!r}, rows={len(self):,} of {self.total_rows:,}{chosen})"

    def __getstate__(self) -> dict[str, object]:
        # What is drawn how often is planned where the run begins; who reads rows need not know.
        return {**self.__dict__, "_handles": {}, "weights": None}

    def __enter__(self) -> Lake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the dataset. Reading again opens it again."""
        self._handles = {}

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

        A row whose image is not what was ingested says so (`Row.damage`).

        Raises:
            LakeError: the rows cannot be read.
            IndexError: there is no such row.
        """
        rows = self.base_rows(indices)
        self.prefetch(indices)
        captions = self._captions(rows)
        also = [self._plain(name, rows) for name in self.also]
        images, damage = self._images(rows)
        others = list(zip(*also, strict=True)) or [()] * len(rows)
        return [Row(*parts) for parts in zip(rows.tolist(), images, captions, damage, others, strict=True)]

    @property
    def is_remote(self) -> bool:
        """Whether rows come over a network."""
        return self._remote is not None

    def prefetch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Begin to fetch the rows at these indices, which `read` will be asked for, and return at once.

        Does nothing where the lake is on this machine. To be called in the process that will read them, or in any other
        of the same machine: they share what they fetch.
        """
        if self._remote is not None:
            checksums = ["crc32"] if self._has_checksums else []
            texts = self.template.names if self.template is not None else [self.caption_column]
            columns = [self._names[name] for name in (*texts, *self.also, self.image_column)]
            self._remote.prefetch([*columns[:-1], *checksums, columns[-1]], self.base_rows(indices))

    def images(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[bytes]:
        """The encoded images at these indices, without their captions, damaged or not."""
        return self.images_and_damage(indices)[0]

    def images_and_damage(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> tuple[list[bytes], list[str]]:
        """The encoded images at these indices, and how each differs from what was ingested ('' where it does not)."""
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
        self.require(name)
        return self._plain(name, self.base_rows(indices))

    def require(self, name: str) -> None:
        """Make sure that a column is there and can be read.

        Raises:
            LakeError: it is not, or cannot safely.
        """
        if name not in self.columns:
            raise LakeError(f"the lake at {self.path} has no column {name!r}", found=list_columns(self.columns))
        if not is_readable(self.columns[name]):
            raise LakeError(
                f"the column {name!r} of the lake at {self.path} cannot be read",
                found=f"type {self.columns[name]}, which makes Deep Lake crash",
                next_step="store several texts as one JSON text",
            )

    def _plain(self, name: str, rows: NDArray[np.int64]) -> list[object]:
        values = self._fetch(self._names[name], rows)
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
        return self._handle(_OTHERS)

    def _handle(self, use: str) -> Any:
        """A handle for one kind of reading. Images have one of their own: reading a number in between makes Deep Lake
        forget the chunks of theirs that it holds, and the next image costs four times as much."""
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        if use not in self._handles:
            self._handles[use] = engine.open_version(self.path, self.version)
        return self._handles[use]

    @property
    def _has_checksums(self) -> bool:
        """Whether this is a lake of ours, or one with the same columns, read as such."""
        known = all(self._stored.get(name) == kind for name, kind in COLUMNS.items())
        return known and self._names[self.image_column] == "image"

    def _images(self, rows: NDArray[np.int64]) -> tuple[list[bytes], list[str]]:
        """The images, and how each differs from what was ingested. Deep Lake keeps no checksums; lakes of ours do."""
        # Deep Lake gives None for no bytes.
        images = [data or b"" for data in self._fetch(self._names[self.image_column], rows)]
        damage = [""] * len(images)
        if self._has_checksums:
            for place, expected in enumerate(self._fetch("crc32", rows)):
                if (found := zlib.crc32(images[place])) != expected:
                    damage[place] = f"checksum {found:#x}, not {expected:#x}: the storage has changed its bytes"
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
        """Values of a column, in the order of `rows`. A slice costs less than a list of half the rows in it."""
        if not len(rows):
            return []
        if self._remote is not None:
            return self._remote.values(name, rows)
        encoded = self._stored[name] in ("image", "link[image]")
        column = self._handle(_IMAGES if encoded or self._stored[name] == "bytes" else _OTHERS)[name]
        first, last = int(rows.min()), int(rows.max()) + 1
        dense = last - first <= 2 * len(rows)
        wanted = np.arange(first, last) if dense else np.unique(rows)
        where: slice | list[int] = slice(first, last) if dense else wanted.tolist()
        try:
            values = column.get_bytes(where) if encoded else column[where]
        except Exception as error:
            # A failed read leaves the handle unable to read that chunk ever again.
            self._handles = {}
            engine.require_folder(self.path)
            raise LakeError(
                f"rows {first} … {last - 1} of the lake at {self.path} cannot be read",
                found=engine.one_line(error),
                next_step="its storage is damaged: copy or ingest the lake again",
            ) from None
        plain = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)
        return [plain[place] for place in np.searchsorted(wanted, rows).tolist()]
