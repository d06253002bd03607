"""Readers of JSON objects: one per line, or in one array."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import NamedTuple

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.lines import MAX_LINE, READ_ERRORS, FileEncoding, Lines, open_lines
from lakeclip.ingestion.sources.record import Record

#: Limits of the rows from which the columns are inferred.
_INFERENCE_ROWS = 10_000
_INFERENCE_CHARACTERS = 8 * 2**20
#: Limits of the rows that are kept as a sample.
_SAMPLE_ROWS = 100
_SAMPLE_CHARACTERS = 2**20


class _Row(NamedTuple):
    """A JSON value, or why it cannot be read.

    Attributes:
        name: location for messages; "" if the file is damaged.
        value: the value.
        problem: why there is none; "" if there is.
        size: number of characters.
    """

    name: str
    value: object
    problem: str = ""
    size: int = 0


class JsonTable:
    """A file of JSON objects (a `Table`). Base class: subclasses yield the rows.

    The first 10,000 rows determine the columns. A key that appears later becomes a column when it does.

    Raises:
        SourceError: the file cannot be read, or these rows hold no object.
    """

    _allowed = 'one object per line, such as {"url": "https://…", "caption": "a cat"}'

    def __init__(self, path: str, encoding: FileEncoding | None = None) -> None:
        self.path = path
        self.position = 0
        self.is_complete = True
        self.unreadable: dict[str, str] = {}
        self.columns: dict[str, str] = {}
        self.sample: list[dict[str, object]] = []
        self._encoding = encoding
        self._lines: Lines | None = None
        self._late: dict[str, str] = {}
        size = 0
        for number, row in enumerate(self._rows()):
            size += row.size
            if isinstance(row.value, dict):
                self._add(row.value)
                if len(self.sample) < _SAMPLE_ROWS and size < _SAMPLE_CHARACTERS:
                    self.sample.append(row.value)
            if number >= _INFERENCE_ROWS or size >= _INFERENCE_CHARACTERS:
                break
        if not self.columns:
            raise SourceError(f"{path} holds no JSON object", allowed=self._allowed)
        # A column that is always null may be anything; text holds any value.
        self.columns = {name: kind or "text" for name, kind in self.columns.items()}
        self.is_complete = True
        self.position = 0

    def _rows(self) -> Iterator[_Row]:
        """Yield the values of the file."""
        raise NotImplementedError

    def _add(self, row: dict[str, object]) -> None:
        for name, value in row.items():
            if value is not None or name not in self.columns:
                self.columns[name] = _json_type(value, self.columns.get(name))

    def resolve(self, name: str) -> str:
        """Return the column that a user means."""
        return name

    def notes(self) -> list[str]:
        """Describe how the file was read."""
        notes = self._lines.notes() if self._lines is not None else []
        if self._late:
            shown = ", ".join(f"{name} ({place})" for name, place in list(self._late.items())[:5])
            more = f" and {len(self._late) - 5:,} more" if len(self._late) > 5 else ""
            notes.append(f"keys that appear late became columns, too: {shown}{more}")
        return notes

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns, and of keys that were unknown when the file was opened.

        The key of a row is its number among the lines that are not blank.
        """
        unused = self.columns.keys() - set(columns)
        number = -1
        for row in self._rows():
            if not row.name:
                self.is_complete = False
                yield Record("", "", row.problem, 0)
                return
            values: dict[str, object] | str
            if row.problem:
                values = row.problem
            elif isinstance(row.value, dict):
                if not self.columns.keys() >= row.value.keys():
                    for name, value in row.value.items():
                        if name not in self.columns:
                            self.columns[name] = _json_type(value, None) or "text"
                            self._late[name] = row.name
                values = {name: value for name, value in row.value.items() if name not in unused}
            else:
                values = f"not a JSON object: {json.dumps(row.value, ensure_ascii=False)[:60]}"
            number += 1
            yield Record(str(number), row.name, values)


class JsonLinesTable(JsonTable):
    """A file with a JSON object on each line (a `Table`)."""

    def _rows(self) -> Iterator[_Row]:
        with open_lines(self.path, self._encoding) as lines:
            self._lines, self._encoding = lines, lines.file_encoding
            while True:
                lines.start_row()
                try:
                    line = next(lines)
                    if not line.strip():
                        continue
                    row = _Row(f"line {lines.number}", json.loads(line), "", len(line))
                except StopIteration:
                    return
                except (ValueError, RecursionError) as error:
                    row = _Row(f"line {lines.number}", None, f"broken line: {error}")
                except READ_ERRORS as error:
                    row = _Row("", None, f"broken file: {error}; everything after line {lines.number} is lost")
                self.position = lines.position
                yield row


class JsonArrayTable(JsonTable):
    """A file with one JSON array of objects (a `Table`). It is read in bounded memory."""

    _allowed = 'an array of objects, such as [{"image": "1.jpg", "caption": "a cat"}, …]'

    def _rows(self) -> Iterator[_Row]:
        decoder = json.JSONDecoder()
        with open_lines(self.path, self._encoding) as lines:
            self._lines, self._encoding = lines, lines.file_encoding
            text, position, number, is_open = "", 0, 0, False
            while True:
                text, position, is_end, problem = text[position:], 0, False, ""
                try:
                    text += lines.read_text(max(len(text), 2**16))
                    is_end = lines.is_at_end
                except READ_ERRORS as error:
                    is_end, problem = True, str(error)
                while True:
                    start = position
                    while position < len(text) and text[position] in (" \t\r\n," if is_open else " \t\r\n"):
                        position += 1
                    if position == len(text):
                        break
                    if not is_open:
                        if text[position] != "[":
                            raise SourceError(f"{self.path} is not a JSON array", allowed=self._allowed)
                        is_open, position = True, position + 1
                        continue
                    if text[position] == "]":
                        return
                    try:
                        value, end = decoder.raw_decode(text, position)
                    except (ValueError, RecursionError) as error:
                        position = start
                        problem = problem or " ".join(str(error).split())
                        if len(text) - start > MAX_LINE or isinstance(error, RecursionError):
                            is_end = True
                        break
                    if end == len(text) and not is_end:
                        position = start  # a number may continue
                        break
                    self.position = lines.position
                    yield _Row(f"item {number}", value, "", end - position)
                    number, position = number + 1, end
                if is_end:
                    problem = problem or "it ends within the array"
                    yield _Row("", None, f"broken file: {problem}; everything after item {number - 1} is lost")
                    return


def is_json_array(path: str, encoding: FileEncoding) -> bool:
    """Return whether a JSON file holds an array, not objects."""
    with open_lines(path, encoding) as lines:
        try:
            return lines.read_text(4096).lstrip().startswith("[")
        except READ_ERRORS:
            return False


def _json_type(value: object, known: str | None) -> str:
    """Return the type of a value as `infer_roles` calls it, or "" if all values so far are null."""
    if value is None:
        return known or ""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(isinstance(part, str) or part is None for part in value):
        return "list of text" if known != "text" else "text"
    if isinstance(value, dict) and ("bytes" in value or "path" in value) and value.keys() <= {"bytes", "path"}:
        return "image"
    return known or type(value).__name__
