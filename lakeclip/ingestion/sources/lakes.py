"""Source for another lake: any Deep Lake 4 dataset, or one of Deep Lake 3, which is thereby converted."""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import LakeError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.column_roles import infer_roles, plain, to_sample
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.lake import engine
from lakeclip.lake.columns import is_readable, type_names
from lakeclip.lake.dataset import open_lake
from lakeclip.lake.folder.records import Collision, Rejected
from lakeclip.lake.query import select_rows
from lakeclip.lake.schema import COLUMNS, SOURCE, UNUSABLE

_SCHEMES = ("hub", "al", "s3", "gs", "gcs", "az", "azure")
#: Limits of one read.
_BLOCK_ROWS = 256
_BLOCK_BYTES = 32 * 2**20
#: Columns whose values are arrays too large for metadata: masks, and everything with three dimensions.
_ARRAYS = re.compile(r"mask|^array\(.*shape=\(([^,)]*,){2}")


def is_lake(name: str) -> bool:
    """Return whether a name is the URL of a Deep Lake dataset, or a folder with one."""
    if "://" in name:
        return name.partition("://")[0] in _SCHEMES
    folder = name if os.path.isdir(name) else str(engine.local_folder(name))
    return os.path.isdir(os.path.join(folder, "_deeplake_log"))


def is_deeplake3(path: str) -> bool:
    """Return whether a folder holds a Deep Lake 3 dataset."""
    return os.path.isfile(os.path.join(path, "dataset_meta.json"))


class LakeRows:
    """Rows of a lake (a `Source`).

    A row of a lake written by lakeclip keeps its key, prefixed by its part. In other lakes a column called `key` need
    not identify a row, so the row number becomes the key. Columns that repeat lakeclip's own and columns that cannot be
    read are ignored.

    Args:
        path: a folder or a URL.
        part: name of the part; by default the last component of the path.
        query: WHERE clause that selects rows; all rows by default.
        image_column: column with the images or their URLs; inferred by default.
        caption_columns: columns with the captions, best first; inferred by default.
        caption_template: caption with names of columns in braces.

    Raises:
        LakeError: the lake cannot be opened, or the query is wrong.
        SourceError: it has no suitable columns.
    """

    def __init__(
        self,
        path: str,
        part: str | None = None,
        query: str | None = None,
        *,
        image_column: str | None = None,
        caption_columns: Sequence[str] = (),
        caption_template: str | None = None,
    ) -> None:
        self.name = path
        self.part = part if part is not None else os.path.basename(path.rstrip("/"))
        self.position = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self.completed: list[tuple[str, int]] = []
        self._open(path, query)
        columns = self._columns()
        self.size = self._count()
        self._is_native = all(columns.get(name) == kind for name, kind in COLUMNS.items())
        unreadable = {name: kind for name, kind in columns.items() if not is_readable(kind) or _ARRAYS.search(kind)}
        self.ignored.update(f"column {name} ({kind})" for name, kind in unreadable.items())
        usable = {name: kind for name, kind in columns.items() if name not in unreadable}
        if self._is_native:
            usable = {
                name: kind
                for name, kind in usable.items()
                if name in ("image", "captions") or name not in (*COLUMNS, SOURCE, UNUSABLE)
            }
        self.keys_are_numbers = not self._is_native
        self._roles = infer_roles(
            usable,
            f"the lake at {path}",
            image_column=image_column,
            caption_columns=caption_columns,
            caption_template=caption_template,
            files=False,
        )
        self.notes = [f"{self.part}: {note}" for note in self._roles.notes]
        self.mapping = self._roles.mapping
        self._columns_read = [name for name in usable if name in self._roles.used]
        used = set(self._columns_read)
        self.ignored.update(f"column {name} ({kind})" for name, kind in usable.items() if name not in used)
        if self._is_native:
            self._columns_read += [name for name in ("key", "crc32", SOURCE, UNUSABLE) if name in columns]

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        """Do nothing: the lake is always read, because rows may have been added."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        block = 32
        start = 0
        while start < self.size:
            indices = np.arange(start, min(start + block, self.size))
            columns = {name: self._values(name, indices) for name in self._columns_read}
            rows = self._row_numbers(indices).tolist()
            for row, values in zip(rows, zip(*columns.values(), strict=True), strict=True):
                self.position += 1
                yield self._sample(row, dict(zip(columns, values, strict=True)))
            images = columns.get(self._roles.image, [])
            size = sum(len(image) for image in images if isinstance(image, bytes))
            start += len(indices)
            block = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES * len(indices) // max(size, 1)))

    def _sample(self, row: int, values: dict[str, object]) -> Sample | Rejected:
        name = f"{self.part}: row {row}"
        if not self._is_native:
            return to_sample(str(row), name, values, self._roles)
        image = values.get(self._roles.image)
        if self._roles.image == "image" and isinstance(image, bytes) and zlib.crc32(image) != values["crc32"]:
            return Rejected(name, f"damaged image: its checksum is {zlib.crc32(image):#x}, not {values['crc32']:#x}")
        part, key = values.get(SOURCE), values["key"]
        item = to_sample(f"{part}/{key}" if part else str(key), name, values, self._roles)
        if isinstance(item, Rejected):
            return item
        metadata = {_original_name(column): value for column, value in item.metadata.items()}
        unusable = str(values.get(UNUSABLE) or "") if not item.image else ""
        return item._replace(metadata=metadata, unusable=unusable)

    def _open(self, path: str, query: str | None) -> None:
        self._lake = open_lake(path, query, include_unusable=True)

    def _columns(self) -> dict[str, str]:
        return self._lake.columns

    def _count(self) -> int:
        return len(self._lake)

    def _row_numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._lake.base_rows(indices)

    def _values(self, name: str, indices: NDArray[np.int64]) -> Sequence[object]:
        # Deep Lake has its own dictionary type.
        return [value.to_dict() if hasattr(value, "to_dict") else value for value in self._lake.values(name, indices)]


class DeepLake3Rows(LakeRows):
    """Rows of a Deep Lake 3 dataset in a folder (a `Source`).

    Deep Lake 4 does not open such a dataset, but its queries can read it. Scalars are stored there as arrays of one
    element. The names of class labels become a further column: `label_name` for `label`.
    """

    def _open(self, path: str, query: str | None) -> None:
        if '"' in path:
            raise LakeError(f"cannot read {path}", found='a " in its path', next_step="rename the folder")
        try:
            self._view: Any = engine.deeplake().query(f'SELECT * FROM "{os.path.abspath(path)}"')  # noqa: S608
        except Exception as error:
            raise LakeError(f"cannot read the Deep Lake 3 dataset at {path}", found=engine.one_line(error)) from None
        self._rows = (
            np.arange(len(self._view), dtype=np.int64) if query is None else select_rows(self._view, query, path).rows
        )
        self._types = type_names(self._view)
        self._class_names = {
            f"{name}_name": (name, names)
            for name, kind in self._types.items()
            if "class_label" in kind and f"{name}_name" not in self._types and (names := self._names_of(name))
        }

    def _columns(self) -> dict[str, str]:
        return {**self._types, **dict.fromkeys(self._class_names, "text")}

    def _count(self) -> int:
        return len(self._rows)

    def _row_numbers(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._rows[indices]

    def _values(self, name: str, indices: NDArray[np.int64]) -> Sequence[object]:
        if name in self._class_names:
            label, names = self._class_names[name]
            return [
                names[value] if isinstance(value, int) and 0 <= value < len(names) else None
                for value in self._values(label, indices)
            ]
        rows = self._rows[indices]
        first, last = int(rows[0]), int(rows[-1]) + 1
        index = slice(first, last) if np.array_equal(rows, np.arange(first, last)) else rows.tolist()
        column = self._view[name]
        try:
            if self._types[name] in ("image", "link[image]"):
                return list(column.get_bytes(index))
            return [_scalar(value) for value in column[index]]
        except Exception as error:
            raise LakeError(
                f"rows {rows.min()} … {rows.max()} of the lake at {self.name} cannot be read",
                found=engine.one_line(error),
            ) from None

    def _names_of(self, name: str) -> list[str]:
        metadata = self._view[name].metadata
        known = set(metadata.keys())  # not a dictionary: `in` does not work
        return [str(label) for label in metadata["class_names"]] if "class_names" in known else []


def _scalar(value: object) -> object:
    if not isinstance(value, np.ndarray):
        return plain(value)
    return None if not value.size else plain(value.item() if value.size == 1 else value)


def _original_name(column: str) -> str:
    """Return the metadata name that `schema.metadata_column` changed because lakeclip uses it itself."""
    stem = column
    while stem.endswith("_meta"):
        stem = stem.removesuffix("_meta")
    return column.removesuffix("_meta") if stem in (*COLUMNS, SOURCE, UNUSABLE, "") else column


def _matches(path: str) -> bool:
    return is_lake(path) or is_deeplake3(path)


def _open(paths: Sequence[str], options: SourceOptions) -> list[LakeRows]:
    sources = []
    for path, part in zip(paths, options.parts, strict=True):
        reader = DeepLake3Rows if is_deeplake3(path) else LakeRows
        sources.append(
            reader(
                path,
                part,
                options.query,
                image_column=options.image_column,
                caption_columns=options.caption_columns,
                caption_template=options.caption_template,
            )
        )
    return sources


FORMAT = SourceFormat(
    "lake",
    "another lake (a folder, s3://…, gs://…, az://…, hub://… or al://…)",
    _open,
    matches=_matches,
    has_columns=True,
    has_query=True,
)
