"""`MetadataColumns`: the columns of a lake that hold metadata. They follow the names and the types of the values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lakeclip.lake.schema import (
    COLUMNS,
    MAX_METADATA_COLUMNS,
    MISSING_INT,
    SOURCE,
    UNUSABLE,
    Kind,
    convert,
    kind_of,
    metadata_column,
    old_metadata_column,
)
from lakeclip.lake.values import Plain, plain_value

_BLOCK = 100_000
#: Number of columns that are named in the result if they do not fit.
_SHOWN = 10


class MetadataColumns:
    """Columns for metadata of a dataset that is being written.

    The first `MAX_METADATA_COLUMNS` names become columns; the values of all others are left out and counted.

    Args:
        dataset: the dataset.
        types: its columns, name → type.

    Attributes:
        kinds: column → kind.
        renamed: name of metadata → column, where the two differ.
        changed: number of values that are not stored as they were read, by reason and column.
    """

    def __init__(self, dataset: Any, types: Mapping[str, str]) -> None:
        self._dataset = dataset
        kinds = {kind.type_name: kind for kind in Kind}
        self.kinds = {
            name: kinds[kind]
            for name, kind in types.items()
            if name not in COLUMNS and name != SOURCE and kind in kinds
        }
        self.renamed: dict[str, str] = {}
        self.changed: Counter[str] = Counter()
        self._names: dict[str, str] = {}
        self._left_out: set[str] = set()

    @property
    def is_full(self) -> bool:
        """True once values of further names are left out."""
        return len(self.kinds) >= MAX_METADATA_COLUMNS

    def plain_values(self, metadata: Mapping[Any, object]) -> dict[str, Plain]:
        """Convert metadata to column → value that the column can hold; count what is changed."""
        values: dict[str, Plain] = {}
        for given_name, value in metadata.items():
            name = str(given_name)
            column = self._names.get(name) or self._choose_column(name)
            if column in values:
                self.changed[f"column {column}: second value of a row, left out"] += 1
                continue
            problems: Counter[str] = Counter()
            values[column] = plain_value(value, problems)
            for reason, count in problems.items():
                self.changed[f"column {column}: {reason}"] += count
        return values

    def adapt(self, batch: Sequence[Mapping[str, object]], num_rows: int, *, all_columns: bool = True) -> None:
        """Add the columns that these rows need, and widen columns that cannot hold their values.

        Args:
            batch: column → value of each of the rows.
            num_rows: number of rows of the dataset.
            all_columns: whether the rows have no value in the other columns; False if these are not written.
        """
        names = dict.fromkeys(name for metadata in batch for name in metadata)
        for name in names:
            known = self.kinds.get(name)
            earlier_rows = [None] if known is None and num_rows else []
            kind = kind_of([*earlier_rows, *(metadata.get(name) for metadata in batch)], known)
            if kind is None or kind is known:
                continue
            if known is None and self.is_full and name != UNUSABLE:
                self._leave_out(name, sum(metadata.get(name) is not None for metadata in batch))
                continue
            self.kinds[name] = (
                self._add(name, kind, num_rows) if known is None else self._widen(name, known, kind, num_rows)
            )
        for name in self.kinds.keys() - names.keys() if all_columns else ():
            if self.kinds[name] is Kind.BOOL:  # all values of this batch are missing
                self.kinds[name] = self._widen(name, Kind.BOOL, Kind.INT, num_rows)

    def _leave_out(self, name: str, num_values: int) -> None:
        self._left_out.add(name)
        shown = f"column {name}" if len(self._left_out) <= _SHOWN else "further columns"
        self.changed[f"{shown}: left out, because the lake has {MAX_METADATA_COLUMNS} others"] += num_values

    def _choose_column(self, name: str) -> str:
        column, old = metadata_column(name), old_metadata_column(name)
        if old in self.kinds and column not in self.kinds and old not in self._names.values():
            column = old  # an earlier version of lakeclip created it
        self._names[name] = column
        if column != name:
            self.renamed[name] = column
        return column

    def _add(self, name: str, kind: Kind, num_rows: int) -> Kind:
        self._dataset.add_column(name, kind.type_name)
        # Deep Lake fills earlier rows with NULL, which queries compare with nothing: neither '' nor a number.
        for start, stop in _blocks(num_rows):
            self._dataset[name][start:stop] = [kind.missing] * (stop - start)
        return kind

    def _widen(self, name: str, old: Kind, new: Kind, num_rows: int) -> Kind:
        """Convert a column to a wider type."""
        missing = {Kind.INT: MISSING_INT, Kind.TEXT: None}.get(old)

        def stored(start: int, stop: int) -> list[object]:
            values = self._dataset[name][start:stop]
            items = values if isinstance(values, list) else values.tolist()
            return [None if value == missing or value != value else value for value in items]

        for start, stop in _blocks(num_rows):
            new = kind_of(stored(start, stop), new) or new
        widened = f"{name} widened"
        while widened in self.kinds:  # a name of the metadata
            widened += "_"
        self._dataset.add_column(widened, new.type_name)
        for start, stop in _blocks(num_rows):
            self._dataset[widened][start:stop] = [convert(value, new) for value in stored(start, stop)]
        self._dataset.remove_column(name)
        self._dataset.rename_column(widened, name)
        return new


def _blocks(total: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, total)) for start in range(0, total, _BLOCK)]
