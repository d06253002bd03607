"""Reader of CSV and TSV files."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Collection, Iterator, Sequence

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.csv_layout import (
    KNOWN_NAMES,
    infer_layout,
    is_image_location,
    is_number,
    is_prose,
    parse_rows,
)
from lakeclip.ingestion.sources.lines import READ_ERRORS, FileEncoding, Lines, open_lines
from lakeclip.ingestion.sources.record import Record

#: Limits of the lines from which the layout is inferred.
_HEAD_LINES = 300
_HEAD_CHARACTERS = 2**20
#: A column of words has at most so many different values in these lines.
_MAX_CLASSES = 12


class DelimitedTable:
    """A CSV or TSV file (a `Table`).

    The separator (tab, comma, semicolon or |) is the one that finds known names or images in the first line, and else
    the most regular one. Quotes follow the convention of spreadsheets. If a line does not parse that way, its quotes
    are ordinary characters.

    The first line is a header if it contains a known name (`url`, `caption`, `filepath`, … or one of `names`), in upper
    or lower case. It is a row if it holds the URL or the name of an image, or numbers above numbers (CC3M, for example:
    caption, tab, URL; quotes are ordinary characters there). Any other first line is a header with unknown names.

    A line with too many cells is mended if there is one way to do it: its caption holds separators without quotes.

    Args:
        path: the file.
        names: columns that the user has chosen, by name or by number from 1.
        encoding: how the lines are decoded; detected by default.
        delimiter: the separator; inferred by default.
        is_image: whether a cell of the first line is the name, without suffix perhaps, of an image that exists.

    Raises:
        SourceError: the file cannot be read, or is empty.
    """

    def __init__(
        self,
        path: str,
        names: Collection[str] = (),
        *,
        encoding: FileEncoding | None = None,
        delimiter: str | None = None,
        is_image: Callable[[str], bool] | None = None,
    ) -> None:
        self.path = path
        self.position = 0
        self.is_complete = True
        self.unreadable: dict[str, str] = {}
        self.num_mended = 0
        head: list[str] = []
        with open_lines(path, encoding) as lines:
            self._encoding = lines.file_encoding
            with contextlib.suppress(*READ_ERRORS):
                while len(head) < _HEAD_LINES and sum(map(len, head)) < _HEAD_CHARACTERS:
                    try:
                        head.append(next(lines))
                    except ValueError:  # a line that is too long
                        continue
                    except StopIteration:
                        break
        # Excel's way to name the separator.
        named = re.fullmatch(r'"?sep=(.)"?\s*', head[0]) if head else None
        self._num_skipped = int(named is not None)
        delimiter = delimiter or (named[1] if named is not None else None)
        head = head[self._num_skipped :]
        layout = infer_layout(path, head, names, delimiter, is_image)
        if layout is None:
            raise SourceError(f"{path} is empty", allowed="one line per image")
        self._layout = layout
        self._header = layout.header
        self.columns = dict.fromkeys(self._header, "text")
        self._chosen = frozenset(map(self.resolve, names))
        self.sample = self._read_sample(head)
        self._lines: Lines | None = None

    def resolve(self, name: str) -> str:
        """Return the column that a user means: by its name, its number from 1, or by its value in the first row."""
        if name in self._header:
            return name
        if not self._layout.has_header and name in self._layout.first:
            return self._header[self._layout.first.index(name)]
        stripped = {column.lower(): column for column in reversed(self._header)}
        if name.strip().lower() in stripped:
            return stripped[name.strip().lower()]
        match = re.fullmatch(r"(?:column )?(\d+)", name)
        return self._header[int(match[1]) - 1] if match and 0 < int(match[1]) <= len(self._header) else name

    def notes(self) -> list[str]:
        """Describe what was guessed or mended."""
        notes = [*(self._lines.notes() if self._lines is not None else ()), *self._layout.notes]
        if self.num_mended:
            notes.append(f"{self.num_mended:,} lines have separators within the caption; their cells were joined")
        return notes

    def _read_sample(self, head: Sequence[str]) -> list[dict[str, object]]:
        layout = self._layout
        parsed = parse_rows(head, layout.separator, layout.quoting)
        rows = [self._strip(row) for row in parsed if len(row) == len(self._header)]
        rows = rows[1:] if layout.has_header else rows
        columns: list[list[str]] = list(map(list, zip(*rows, strict=True))) or [[] for _ in self._header]
        self._is_number = [bool(values) and all(not v.strip() or is_number(v) for v in values) for values in columns]
        self._is_location = [bool(values) and all(map(is_image_location, values)) for values in columns]
        self._is_prose = [is_prose(values) for values in columns]
        self._classes = [
            frozenset(values) if len(values) > 4 * _MAX_CLASSES and len(set(values)) <= _MAX_CLASSES else None
            for values in columns
        ]
        self._has_leading_blanks = any(value[:1] == " " for values in columns for value in values)
        return [dict(zip(self._header, row, strict=True)) for row in rows]

    def _strip(self, cells: list[str]) -> list[str]:
        return [cell.strip(" ") for cell in cells] if self._layout.has_blanks else cells

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns. Numeric cells become numbers, and empty cells None.

        The key of a row is its number among the rows that are not blank; broken lines count too.

        Args:
            columns: the columns.
            texts: those with captions and locations, whose values stay text.
        """
        texts = {name for name in columns if name in texts or name in self._chosen or name.lower() in KNOWN_NAMES}
        layout, width = self._layout, len(self._header)
        number = -2 if layout.has_header else -1
        with open_lines(self.path, self._encoding) as lines:
            self._lines = lines
            for _ in range(self._num_skipped):
                next(lines)
            reader = csv.reader(lines, delimiter=layout.separator, quoting=layout.quoting, strict=True)
            while True:
                lines.start_row()
                start = lines.number + 1
                cells: list[str] | str
                try:
                    cells = next(reader)
                    if not cells or (len(cells) == 1 < width and not cells[0].strip()):
                        continue
                except StopIteration:
                    return
                except (csv.Error, ValueError) as error:
                    cells = f"broken line: {error}"
                except READ_ERRORS as error:
                    self.is_complete = False
                    yield Record("", "", f"broken file: {error}; everything after line {lines.number} is lost")
                    return
                spans_too_much = len(lines.row_lines) > 1 and len(cells) != width
                if lines.row_lines and (isinstance(cells, str) or spans_too_much):
                    # An unclosed quote consumes further lines: parse the first one alone, and read the others again.
                    first_line = csv.reader([lines.put_back()], delimiter=layout.separator, quoting=csv.QUOTE_NONE)
                    with contextlib.suppress(csv.Error):
                        record = next(first_line, [])
                        cells = record if len(record) == width else cells
                if isinstance(cells, list) and len(cells) != width:
                    mended = self._mend(cells, texts) if len(cells) > width else None
                    if mended is None:
                        cells = f"wrong number of columns: {len(cells)}, not {width}"
                    else:
                        self.num_mended += number >= -1 and any(cell.strip() for cell in cells[width:])
                        cells = mended
                number += 1
                self.position = lines.position
                if number < 0:
                    continue
                row: dict[str, object] | str
                if isinstance(cells, str):
                    row = cells
                else:
                    row = {
                        name: cell if name in texts else _value(cell)
                        for name, cell in zip(self._header, self._strip(cells), strict=True)
                        if name in columns
                    }
                yield Record(str(number), f"line {start}", row)

    def _mend(self, cells: list[str], texts: Collection[str]) -> list[str] | None:
        """Join the cells of a line that has too many, if there is one way to do it."""
        width, separator = len(self._header), self._layout.separator
        if not any(cell.strip() for cell in cells[width:]):
            return cells[:width]
        if separator in ",;" and not self._has_leading_blanks and cells[0][:1] != " ":
            # Prose has a blank after a comma, a separator has none.
            joined: list[str] = []
            for cell in cells:
                if cell[:1] == " ":
                    joined[-1] += separator + cell
                else:
                    joined.append(cell)
            if len(joined) == width:
                return joined
        extra = len(cells) - width
        ways = []
        for column, name in enumerate(self._header):
            if not (self._is_prose[column] or (name in texts and not self._is_location[column])):
                continue
            merged = separator.join(cells[column : column + extra + 1])
            candidate = [*cells[:column], merged, *cells[column + extra + 1 :]]
            if all(self._fits(other, candidate[other]) for other in range(width) if other != column):
                ways.append(candidate)
        return ways[0] if len(ways) == 1 else None

    def _fits(self, column: int, cell: str) -> bool:
        """Return whether a cell may be in a column, by what the first rows have there."""
        if self._is_number[column]:
            return not cell.strip() or is_number(cell)
        if self._is_location[column]:
            return is_image_location(cell)
        classes = self._classes[column]
        return classes is None or cell in classes


def _value(cell: str) -> object:
    """Convert a cell to an integer (if it is written canonically) or a fraction; return None if it is empty."""
    if not cell or cell.lower() == "nan":
        return None
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", cell):
        return int(cell)
    return float(cell) if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+(e[-+]?\d+)?", cell, re.IGNORECASE) else cell
