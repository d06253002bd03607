"""Source for tables (Parquet, Arrow, CSV, TSV, JSON Lines, JSON arrays) with images, file names or URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Sequence
from dataclasses import replace
from urllib.parse import unquote

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.column_roles import Roles, infer_roles, plain, to_sample
from lakeclip.ingestion.sources.conversations import with_conversations
from lakeclip.ingestion.sources.csv import DelimitedTable
from lakeclip.ingestion.sources.files import FileSource
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.ingestion.sources.image_files import ImageFinder, find_file_column
from lakeclip.ingestion.sources.jsonlines import JsonArrayTable, JsonLinesTable, is_json_array
from lakeclip.ingestion.sources.lines import READ_ERRORS, FileEncoding, find_encoding
from lakeclip.ingestion.sources.record import Table
from lakeclip.ingestion.sources.same_image import SameImageMerger, has_repeated_images, is_list_of_captions
from lakeclip.lake.caption_template import template_names
from lakeclip.lake.folder.records import Rejected

PARQUET_SUFFIXES = (".parquet", ".pq")
_ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
_LINES_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_JSON_SUFFIXES = (".json", ".json.gz")
_TEXT_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
TABLE_SUFFIXES = (*PARQUET_SUFFIXES, *_ARROW_SUFFIXES, *_TEXT_SUFFIXES, *_LINES_SUFFIXES, *_JSON_SUFFIXES)
#: Value of a partition without a value, as Hive and Spark write it.
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class Tables(FileSource):
    """Rows of tables (a `Source`). Column roles are inferred for each file separately.

    File names of images are relative to `image_root` or the folder of the table; see `ImageFinder`. Folders called
    `NAME=VALUE`, as Hive and Spark make them, become columns.

    Args:
        paths: the files, in order.
        parts: a name for each file; see `files.name_parts`.
        image_column: column with the images (bytes, URLs or file names); inferred by default.
        caption_columns: columns with the captions, best first; inferred by default.
        caption_template: caption with names of columns in braces.
        encoding: encoding of text files; detected by default.
        delimiter: separator of CSV files; inferred by default.
        image_root: folder that file names of images are relative to.

    Raises:
        SourceError: a file does not exist, or the first readable one has no suitable columns.
    """

    keys_are_numbers = True

    def __init__(
        self,
        paths: Sequence[str],
        parts: Sequence[str] | None = None,
        *,
        image_column: str | None = None,
        caption_columns: Sequence[str] = (),
        caption_template: str | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        image_root: str | None = None,
    ) -> None:
        super().__init__(paths, parts)
        self._image_root = image_root
        self._image_column = image_column
        self._caption_columns = tuple(caption_columns)
        self._template = caption_template
        self._encoding = encoding
        self._delimiter = delimiter
        self._encodings: dict[str, FileEncoding] = {}
        first_error: SourceError | None = None
        for path in self._paths:
            try:
                table = self._open(path)
            except SourceError as error:
                first_error = first_error or error
                continue
            self.mapping = self._roles(table, path).mapping
            break
        else:
            if first_error is not None:
                raise first_error

    @classmethod
    def open(cls, paths: Sequence[str], options: SourceOptions) -> Tables:
        """Open tables with the options that apply to them."""
        return cls(
            paths,
            options.parts,
            image_column=options.image_column,
            caption_columns=options.caption_columns,
            caption_template=options.caption_template,
            encoding=options.encoding,
            delimiter=options.delimiter,
            image_root=options.image_root,
        )

    def _open(self, path: str) -> Table:
        return with_conversations(self._open_file(path))

    def _open_file(self, path: str) -> Table:
        """Open a file, in whichever format it is."""
        lowered = path.lower()
        if lowered.endswith((*PARQUET_SUFFIXES, *_ARROW_SUFFIXES)):
            # Imported late: pyarrow takes as long to import as everything else that ingest needs.
            from lakeclip.ingestion.sources.parquet import ArrowTable, ParquetTable

            return ParquetTable(path) if lowered.endswith(PARQUET_SUFFIXES) else ArrowTable(path)
        encoding = self._find_encoding(path)
        if lowered.endswith(_LINES_SUFFIXES):
            return JsonLinesTable(path, encoding)
        if lowered.endswith(_JSON_SUFFIXES):
            return JsonArrayTable(path, encoding) if is_json_array(path, encoding) else JsonLinesTable(path, encoding)
        names = [self._image_column] if self._image_column is not None else []
        names += [*self._caption_columns, *(template_names(self._template) if self._template is not None else ())]
        images = self._find_images(path)
        return DelimitedTable(path, names, encoding=encoding, delimiter=self._delimiter, is_image=images.has)

    def _find_encoding(self, path: str) -> FileEncoding:
        if path not in self._encodings:
            try:
                self._encodings[path] = find_encoding(path, self._encoding)
            except READ_ERRORS as error:
                raise SourceError(f"{path} cannot be read", found=str(error)) from None
        return self._encodings[path]

    def _find_images(self, path: str) -> ImageFinder:
        """Return the finder of the images that a table names."""
        return ImageFinder(path, self._image_root)

    def folder_columns(self, path: str) -> dict[str, object]:
        """Return the columns, with their values, that the folders of a table are: `year=2024/split=train/0.parquet`."""
        return _partitions(path)

    def _roles(self, table: Table, path: str) -> Roles:
        chosen = table.resolve(self._image_column) if self._image_column is not None else None
        try:
            return self._infer_roles(table, path, chosen)
        except SourceError:
            found = find_file_column(table, self._find_images(path)) if chosen is None else None
            if found is None:
                raise
        roles = self._infer_roles(table, path, found)
        roles.notes.append(f"images are the files that {found} names; --image-column decides")
        return roles

    def _infer_roles(self, table: Table, path: str, image_column: str | None) -> Roles:
        return infer_roles(
            {**table.columns, **dict.fromkeys(self.folder_columns(path), "partition")},
            path,
            image_column=image_column,
            caption_columns=[table.resolve(name) for name in self._caption_columns],
            caption_template=self._template,
            sample=table.sample,
            has_image=ImageFinder(path, self._image_root).has,
        )

    def read_file(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        """Yield a sample for each row of a table."""
        try:
            table = self._open(path)
            roles = self._roles(table, path)
        except SourceError as error:
            found = f": {error.found}" if error.found else ""
            reason = f"not a usable table: {error.what}{found}"
            self.account.add_used("files", -1)
            self.account.add_left_out("files", reason)
            yield Rejected(path, reason)
            return False
        partitions = {name: value for name, value in self.folder_columns(path).items() if name not in table.columns}
        num_columns = len(table.columns)
        images = self._find_images(path)
        merger = SameImageMerger(roles.path, next(iter(roles.captions.names), ""))
        is_merged = is_list_of_captions(table.columns, merger.path, merger.caption)
        if is_merged and has_repeated_images(table.sample, merger.path):
            # The numbers of captions say nothing about an image.
            kept = tuple(name for name in roles.kept if name not in table.columns or name == roles.path)
            mapping = {role: name for role, name in roles.mapping.items() if role != "also kept"}
            if others := [name for name in kept if name != roles.path]:
                mapping["also kept"] = ", ".join(others)
            self.mapping = mapping if self.mapping == roles.mapping else self.mapping
            roles = replace(roles, kept=kept, mapping=mapping)
        records = table.read(roles.used, roles.texts)
        records = merger.merge(records) if is_merged else records
        for record in records:
            self._advance(table.position)
            self.account.add_read("rows", record.num_rows)
            if len(table.columns) != num_columns:
                roles, num_columns = self._extend(roles, table, path), len(table.columns)
            name = f"{self.part}: {record.name}" if record.name else path
            if isinstance(record.values, str):
                item: Sample | Rejected = Rejected(name, record.values)
            else:
                item = to_sample(record.key, name, {**partitions, **record.values}, roles, images)
            if isinstance(item, Rejected):
                self.account.add_left_out("rows", item.reason, record.num_rows)
            else:
                self.account.add_used("rows", record.num_rows)
            yield item
        self._count_columns(table, roles, partitions)
        described = self.mapping if len(self._paths) > 1 and roles.mapping != self.mapping else {}
        notes = [*table.notes(), *roles.notes, *merger.notes(), *images.notes()]
        if described:
            notes.append("other columns: " + "; ".join(f"{role}: {name}" for role, name in roles.mapping.items()))
        self.notes += [f"{self.part}: {note}" for note in notes]
        # Files beside the table may be added or changed while the table stays the same.
        return table.is_complete and not roles.path

    def _extend(self, roles: Roles, table: Table, path: str) -> Roles:
        """Return the roles after a column has appeared; roles that were filled keep their columns."""
        new = self._roles(table, path)
        has_image = roles.image or roles.path or roles.url
        has_captions = roles.captions.names or roles.captions.template_names
        image, file, url = (roles.image, roles.path, roles.url) if has_image else (new.image, new.path, new.url)
        captions = roles.captions if has_captions else new.captions
        kept = tuple(
            name for name in (*table.columns, *self.folder_columns(path)) if name not in (image, *captions.names)
        )
        notes = [*roles.notes]
        if not has_captions and captions.names:
            notes.append(f"captions are in {', '.join(captions.names)}, which appears late")
        mapping = {**new.mapping, "caption": ", ".join(captions.names) or "none"} if not has_captions else roles.mapping
        return Roles(image, file, url, captions, kept, mapping, notes)

    def _count_columns(self, table: Table, roles: Roles, partitions: dict[str, object]) -> None:
        """Count the columns of a table, and what became of each."""
        for name in (*table.columns, *partitions):
            self.account.add_read("columns")
            if name in roles.used:
                self.account.add_used("columns")
            else:
                self._leave_out(name, table.columns[name])
        for name, kind in table.unreadable.items():
            self.account.add_read("columns")
            self._leave_out(name, kind)

    def _leave_out(self, name: str, kind: str) -> None:
        self.ignored[f"column {name} ({kind})"] += 1
        self.account.add_left_out("columns", f"{name.replace(': ', ' ')} ({kind.replace(': ', ' ')})")


def _partitions(path: str) -> dict[str, object]:
    """Return the columns that the folders of a table are: `year=2024/split=train/0.parquet`."""
    partitions: dict[str, object] = {}
    folders = os.path.dirname(os.path.abspath(path)).split(os.sep)
    for folder in reversed(folders):
        name, equals, value = folder.partition("=")
        if not equals or not name:
            break
        text = unquote(value)
        number = int(text) if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) else text
        partitions[unquote(name)] = None if text == _NO_PARTITION else number
    return {name: plain(value) for name, value in reversed(partitions.items())}


def _choose_files(paths: Sequence[str]) -> Sequence[str]:
    """Choose the Parquet files of a folder if there are any: text tables beside them describe them.

    JSON files that hold no array, such as `dataset_info.json`, describe the tables beside them, too.
    """
    if parquet := [path for path in paths if path.lower().endswith(PARQUET_SUFFIXES)]:
        return parquet
    if arrow := [path for path in paths if path.lower().endswith(_ARROW_SUFFIXES)]:
        return arrow
    tables = [path for path in paths if not path.lower().endswith(_JSON_SUFFIXES) or _holds_array(path)]
    return tables or paths


def _holds_array(path: str) -> bool:
    try:
        return is_json_array(path, find_encoding(path))
    except (SourceError, *READ_ERRORS):
        return False


def _open(paths: Sequence[str], options: SourceOptions) -> list[Tables]:
    return [Tables.open(paths, options)]


FORMAT = SourceFormat(
    "table",
    "tables (.parquet, .arrow, .csv, .tsv, .jsonl, .json)",
    _open,
    suffixes=TABLE_SUFFIXES,
    choose_files=_choose_files,
    beside_images=(*_TEXT_SUFFIXES, *_LINES_SUFFIXES, *_JSON_SUFFIXES),
    has_columns=True,
    options=("encoding", "delimiter", "image_root"),
)
