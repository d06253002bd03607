"""Tables on their way into a lake: Parquet, CSV, TSV and JSON lines, with images, their files or their addresses."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence

from lakeclip.errors import SourceError
from lakeclip.lake.sources.base import Rejected, Sample
from lakeclip.lake.sources.delimited import DelimitedTable
from lakeclip.lake.sources.files import Files
from lakeclip.lake.sources.jsonlines import JsonLinesTable
from lakeclip.lake.sources.record import Table
from lakeclip.lake.sources.roles import Roles, find_roles, to_sample

PARQUET_SUFFIXES = (".parquet", ".pq")
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
TABLE_SUFFIXES = (*PARQUET_SUFFIXES, ".csv", ".tsv", ".csv.gz", ".tsv.gz", *_JSON_SUFFIXES)


def is_table(path: str) -> bool:
    """Whether a name is that of a table."""
    return path.lower().endswith(TABLE_SUFFIXES)


class Tables(Files):
    """Files of rows on their way into a lake (a `Source`). Each file's columns are looked at for themselves.

    Names of image files are relative to the table's own folder.

    Args:
        name: what the user called them.
        paths: the files, in order.
        parts: what to call each; see `files.name_parts`.
        image_column: what holds the images (bytes, addresses, or names of files), if not what the names suggest.
        caption_column: what holds the captions, likewise.

    Raises:
        SourceError: one of them does not exist, or the first that can be read has no columns that fit.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        parts: Sequence[str] | None = None,
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        super().__init__(name, paths, parts)
        self._choice = (image_column, caption_column)
        broken: SourceError | None = None
        for path in self._paths:
            try:
                table = self._open(path)
            except SourceError as error:
                broken = broken or error
                continue
            self.mapping = self._roles(table, path).mapping
            break
        else:
            if broken is not None:
                raise broken

    def _open(self, path: str) -> Table:
        lowered = path.lower()
        if lowered.endswith(PARQUET_SUFFIXES):
            # Here, for it takes as long to import as everything else that ingest needs.
            from lakeclip.lake.sources.parquet import ParquetTable

            return ParquetTable(path)
        if lowered.endswith(_JSON_SUFFIXES):
            return JsonLinesTable(path)
        return DelimitedTable(path, [name for name in self._choice if name is not None])

    def _roles(self, table: Table, path: str) -> Roles:
        image_column, caption_column = self._choice
        return find_roles(table.columns, path, image_column=image_column, caption_column=caption_column)

    def _read(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        try:
            table = self._open(path)
            roles = self._roles(table, path)
        except SourceError as error:
            found = f": {error.found}" if error.found else ""
            yield Rejected(path, f"not a usable table: {error.what}{found}")
            return False
        used = {roles.image, roles.path, roles.url, roles.caption, *roles.kept}
        self.ignored.update(f"column {name} ({kind})" for name, kind in table.columns.items() if name not in used)
        folder = os.path.dirname(os.path.abspath(path))
        for record in table.read(used):
            self._advance(table.position)
            name = f"{self.part}: {record.name}" if record.name else path
            if isinstance(record.values, str):
                yield Rejected(name, record.values)
            else:
                yield to_sample(record.key, name, record.values, roles, folder)
        return table.whole
