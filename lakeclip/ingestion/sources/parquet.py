"""Rows of Parquet files: LAION's metadata, Hugging Face's datasets with images in them, and their like."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from lakeclip.errors import SourceError
from lakeclip.lake.sources.record import Record

#: Rows are decoded in batches of about this many bytes.
_BATCH_BYTES = 2 * 2**20
_MAX_BATCH_ROWS = 1024


class ParquetTable:
    """One Parquet file, a batch of rows at a time (a `Table`).

    A page of a column is the least that can be read: memory follows the largest page, not the file or its row groups.
    Columns that Hugging Face's `datasets` marks as class labels get their names in a further column, `label_name` for
    `label`.

    Raises:
        SourceError: it is no Parquet file, or a damaged one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.position = 0
        self.whole = True
        try:
            with self._open() as file:
                schema = file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(f"{path} cannot be read as a Parquet file", found=_one_line(error)) from None
        self.columns = {field.name: _kind(field.type) for field in schema}
        self._class_names = {
            name: names
            for name, names in _class_names(schema.metadata).items()
            if pa.types.is_integer(schema.field(name).type) and f"{name}_name" not in self.columns
        }
        self.columns |= {f"{name}_name": "text" for name in self._class_names}

    def read(self, wanted: Collection[str]) -> Iterator[Record]:
        """The rows, with the values of these columns."""
        number = 0
        labels = {name: names for name, names in self._class_names.items() if f"{name}_name" in wanted}
        try:
            with self._open() as file:
                columns = [name for name in file.schema_arrow.names if name in wanted or name in labels]
                groups = file.metadata.num_row_groups
                for group in range(groups):
                    about = file.metadata.row_group(group)
                    rows = _BATCH_BYTES * about.num_rows // max(about.total_byte_size, 1)
                    batches = file.iter_batches(
                        min(max(rows, 1), _MAX_BATCH_ROWS), row_groups=[group], columns=columns, use_threads=False
                    )
                    for batch in batches:
                        names = batch.schema.names
                        for values in zip(*(_to_python(column) for column in batch.columns), strict=True):
                            row = dict(zip(names, values, strict=True))
                            for name, known in labels.items():
                                label = row[name]
                                row[f"{name}_name"] = (
                                    known[label] if isinstance(label, int) and 0 <= label < len(known) else None
                                )
                            yield Record(str(number), f"row {number}", row)
                            number += 1
                    self.position = os.path.getsize(self.path) * (group + 1) // groups
                    pa.default_memory_pool().release_unused()  # else it keeps what each group needed
        except (pa.ArrowException, OSError, ValueError) as error:
            self.whole = False
            yield Record("", "", f"broken file: {_one_line(error)}; what follows row {number} is lost")

    def _open(self) -> pq.ParquetFile:
        # Without the read-ahead, which holds a whole row group.
        return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20)


def _kind(dtype: pa.DataType) -> str:
    """A column's type in the words of `find_roles`."""
    types = pa.types
    if types.is_dictionary(dtype):
        return _kind(dtype.value_type)
    if isinstance(dtype, pa.BaseExtensionType):
        return _kind(dtype.storage_type)
    if types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype):
        return "text"
    if (
        types.is_binary(dtype)
        or types.is_large_binary(dtype)
        or types.is_fixed_size_binary(dtype)
        or types.is_binary_view(dtype)
    ):
        return "bytes"
    if types.is_struct(dtype):
        fields = {field.name: field.type for field in dtype}
        return "image" if "bytes" in fields and _kind(fields["bytes"]) == "bytes" else str(dtype)
    if types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        inner = _kind(dtype.value_type)
        return f"list of {inner}" if inner in ("text", "bytes", "image") else str(dtype)
    return str(dtype)


def _to_python(column: pa.Array) -> list[object]:
    dtype = column.type
    if pa.types.is_timestamp(dtype) and dtype.tz is not None:
        # Casting to UTC needs no time zone database; showing the zone's own time would.
        utc = column.cast(pa.timestamp(dtype.unit)).cast(pa.string()).to_pylist()
        return [None if value is None else f"{value}Z" for value in utc]
    # Python's own times hold no nanoseconds: they go as text.
    values: list[object] = column.cast(_without_times(dtype)).to_pylist()
    return values


def _without_times(dtype: pa.DataType) -> pa.DataType:
    """A type with text in place of times."""
    types = pa.types
    if types.is_timestamp(dtype) or types.is_time(dtype) or types.is_date(dtype):
        return pa.string()
    if types.is_duration(dtype):
        return pa.int64()
    if types.is_list(dtype) or types.is_large_list(dtype):
        inner = _without_times(dtype.value_type)
        return dtype if inner == dtype.value_type else pa.list_(inner)
    if types.is_struct(dtype):
        fields = [pa.field(field.name, _without_times(field.type)) for field in dtype]
        return dtype if all(old.type == new.type for old, new in zip(dtype, fields, strict=True)) else pa.struct(fields)
    return dtype


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column → names of its classes, as Hugging Face's `datasets` writes them beside the schema."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):  # it may hold anything
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        for name, feature in features.items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                found[name] = [str(label) for label in feature["names"]]
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
