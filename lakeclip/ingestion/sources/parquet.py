"""Readers of Parquet and Arrow files, such as LAION's metadata and Hugging Face datasets with embedded images."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.arrow_values import column_reader, kind_of_type, to_python
from lakeclip.ingestion.sources.csv_layout import distinct_names
from lakeclip.ingestion.sources.record import Record

#: Approximate size of a decoded batch.
_BATCH_BYTES = 2 * 2**20
_MAX_BATCH_ROWS = 1024
#: Number of rows from which column roles are inferred.
_SAMPLE_ROWS = 64
#: Errors of a damaged file.
_ERRORS = (pa.ArrowException, OSError, ValueError)
#: Errors of values that cannot be converted.
_VALUE_ERRORS = (pa.ArrowException, ValueError, TypeError, NotImplementedError, KeyError, OverflowError)


class ArrowColumns:
    """Columns of a file with an Arrow schema: their names, types and values. Base class of the readers.

    Of columns with one name, each but the first gets a name of its own. Columns of a type that cannot be converted are
    left out. For columns that Hugging Face's `datasets` marks as class labels, the names of the labels become a further
    column: `label_name` for `label`.

    Args:
        path: the file.
        schema: its schema.
    """

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.path = path
        self.position = 0
        self.is_complete = True
        self.columns: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self._unconverted: Counter[str] = Counter()
        self._names = list(zip(schema.names, distinct_names(schema.names), strict=True))
        self._notes = [
            f"there are several columns {name}: one of them is called {distinct}"
            for name, distinct in self._names
            if distinct != name and name.strip()
        ]
        for (_, name), field in zip(self._names, schema, strict=True):
            kinds = self.columns if column_reader(field.type) is not None else self.unreadable
            kinds[name] = kind_of_type(field.type)
        self._class_names = {
            name: names
            for name, names in _class_names(schema.metadata).items()
            if pa.types.is_integer(schema.field(schema.names.index(name)).type) and f"{name}_name" not in self.columns
        }
        self.columns |= {f"{name}_name": "text" for name in self._class_names}

    @property
    def sample(self) -> list[dict[str, object]]:
        """The first rows, without images."""
        texts = [name for name, kind in self.columns.items() if kind not in ("bytes", "image")]
        rows: list[dict[str, object]] = []
        for record in self.read([name for name in texts if name.removesuffix("_name") not in self._class_names]):
            if isinstance(record.values, str) or len(rows) >= _SAMPLE_ROWS:
                break
            rows.append(record.values)
        self.position = 0
        return rows

    def resolve(self, name: str) -> str:
        """Return the column that a user means."""
        return name

    def notes(self) -> list[str]:
        """Describe what was renamed or could not be converted."""
        left_out = [
            f"{count:,} values of column {name} ({self.columns[name]}) cannot be converted and are missing"
            for name, count in self._unconverted.items()
        ]
        return [*self._notes, *left_out]

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns."""
        raise NotImplementedError

    def _stored(self, columns: Collection[str]) -> list[str]:
        """Return the names, in the file, of the columns to read."""
        labels = [name for name in self._class_names if f"{name}_name" in columns]
        return list(dict.fromkeys(name for name, distinct in self._names if distinct in columns or name in labels))

    def _rows(self, batch: pa.RecordBatch, columns: Collection[str], number: int) -> Iterator[Record]:
        """Yield the rows of a batch, which are numbered from `number`."""
        labels = {name: names for name, names in self._class_names.items() if f"{name}_name" in columns}
        pending = list(self._names)
        values: dict[str, list[object]] = {}
        for column, field in zip(batch.columns, batch.schema, strict=True):
            position = next(position for position, (name, _) in enumerate(pending) if name == field.name)
            distinct = pending[position][1]
            pending = pending[position + 1 :]
            if (distinct in columns or distinct in labels) and distinct in self.columns:
                values[distinct] = self._convert(distinct, column)
        for index in range(batch.num_rows):
            row = {name: column[index] for name, column in values.items()}
            for name, known in labels.items():
                label = row[name]
                row[f"{name}_name"] = known[label] if isinstance(label, int) and 0 <= label < len(known) else None
            yield Record(str(number + index), f"row {number + index}", row)

    def _convert(self, name: str, column: pa.Array) -> list[object]:
        try:
            return to_python(column)
        except _VALUE_ERRORS:
            values: list[object] = []
            for index in range(len(column)):
                try:
                    values += to_python(column.slice(index, 1))
                except _VALUE_ERRORS:
                    self._unconverted[name] += 1
                    values.append(None)
            return values


class ParquetTable(ArrowColumns):
    """A Parquet file, read in batches of rows (a `Table`).

    The smallest unit that can be read is a page of a column: memory depends on the largest page, not on the size of the
    file or its row groups. If a row group is damaged, the following ones are read nevertheless.

    Raises:
        SourceError: the file is not a Parquet file, or is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with self._open() as file:
                schema = file.schema_arrow
        except _ERRORS as error:
            raise SourceError(f"{path} cannot be read as a Parquet file", found=_damage(path, error)) from None
        super().__init__(path, schema)

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns."""
        try:
            with self._open() as file:
                yield from self._read_groups(file, columns)
        except _ERRORS as error:
            self.is_complete = False
            yield Record("", "", f"broken file: {_one_line(error)}; all of its rows are lost")

    def _read_groups(self, file: pq.ParquetFile, columns: Collection[str]) -> Iterator[Record]:
        stored = self._stored(columns)
        groups = file.metadata.num_row_groups
        start = 0
        for group in range(groups):
            info = file.metadata.row_group(group)
            number = start
            try:
                rows = _BATCH_BYTES * info.num_rows // max(info.total_byte_size, 1)
                batches = file.iter_batches(
                    min(max(rows, 1), _MAX_BATCH_ROWS), row_groups=[group], columns=stored, use_threads=False
                )
                for batch in batches:
                    yield from self._rows(batch, columns, number)
                    number += batch.num_rows
            except _ERRORS as error:
                self.is_complete = False
                lost = range(number, start + info.num_rows)
                reason = f"broken file: {_one_line(error)}; rows {lost.start} to {lost.stop - 1} are lost"
                yield Record("", "", reason, len(lost))
            start += info.num_rows
            self.position = os.path.getsize(self.path) * (group + 1) // groups
            pa.default_memory_pool().release_unused()  # otherwise the pool keeps the memory of each group

    def _open(self) -> pq.ParquetFile:
        # No read-ahead: it holds a whole row group in memory.
        return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20)


class ArrowTable(ArrowColumns):
    """A file in Arrow's own format: Feather, or what Hugging Face's `save_to_disk` writes (a `Table`).

    Raises:
        SourceError: the file is not an Arrow file, or is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with contextlib.closing(pa.memory_map(path)) as file:
                schema = self._open(file).schema
        except _ERRORS as error:
            raise SourceError(
                f"{path} cannot be read as an Arrow file",
                found=_one_line(error) if os.path.getsize(path) else "an empty file",
                allowed="Arrow's file or stream format, or Feather version 2",
            ) from None
        super().__init__(path, schema)

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns."""
        number = 0
        try:
            with contextlib.closing(pa.memory_map(self.path)) as file:
                for batch in _batches(self._open(file)):
                    for start in range(0, batch.num_rows, _MAX_BATCH_ROWS):
                        part = batch.slice(start, _MAX_BATCH_ROWS)
                        yield from self._rows(part, columns, number)
                        number += part.num_rows
                    self.position = file.tell()
        except _ERRORS as error:
            self.is_complete = False
            yield Record("", "", f"broken file: {_one_line(error)}; everything after row {number} is lost")

    @staticmethod
    def _open(file: pa.MemoryMappedFile) -> Any:
        try:
            return pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    return iter(reader)


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return column → class names, as Hugging Face's `datasets` stores them in the schema's metadata."""
    class_names: dict[str, list[str]] = {}
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):  # the metadata may hold anything
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        for name, feature in features.items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                class_names[name] = [str(label) for label in feature["names"]]
    return class_names


def _damage(path: str, error: Exception) -> str:
    """Say what is wrong with a file that cannot be opened."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(4)
        if not start:
            return "an empty file"
        if start == b"PAR1":
            return f"its end is missing, which holds the places of its rows: all of them are lost ({_one_line(error)})"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
