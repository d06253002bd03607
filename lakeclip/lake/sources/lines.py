"""Rows of text files: CSV, TSV and JSON lines, compressed with gzip or not."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO, Literal

from lakeclip.errors import SourceError
from lakeclip.lake.columns import CAPTION_NAMES, IMAGE_NAMES, PATH_NAMES, URL_NAMES, match_name
from lakeclip.lake.sources.captions import decode_text
from lakeclip.lake.sources.images import image_suffixes, suffix_of
from lakeclip.lake.sources.record import Record
from lakeclip.lake.sources.roles import is_address

#: Longer lines than this are no rows; what reads on for ever without a line's end is no text.
_MAX_LINE = 16 * 2**20
#: So many lines of JSON are looked at to find out which columns there are.
_JSON_SAMPLE = 100
_KNOWN_NAMES = frozenset((*IMAGE_NAMES, *CAPTION_NAMES, *URL_NAMES, *PATH_NAMES))


class _Lines(Iterator[str]):
    """A file's lines. Those that have been taken since `begin` can be given back.

    Attributes:
        number: of the line that was taken last, from 1.
        taken: the lines since `begin`.
    """

    def __init__(self, path: str) -> None:
        self.number = 0
        self.taken: list[str] = []
        self._again: deque[str] = deque()
        with contextlib.ExitStack() as stack:
            self._raw = stack.enter_context(open(path, "rb", buffering=2**18))
            file: Any = self._raw
            if path.lower().endswith(".gz"):
                # Without a buffer more: it would lose what comes before a damaged place.
                file = stack.enter_context(gzip.GzipFile(fileobj=self._raw))
            self._file: BinaryIO | io.TextIOWrapper = file
            start = file.peek(3)[:3]
            if start.startswith((b"\xff\xfe", b"\xfe\xff")):
                self._file = stack.enter_context(io.TextIOWrapper(file, "utf-16", "replace", newline="\n"))
            elif start == b"\xef\xbb\xbf":
                file.read(3)
            self._stack = stack.pop_all()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def position(self) -> int:
        """Bytes of the file, as it is on disk, that have been read."""
        return self._raw.tell()

    def __next__(self) -> str:
        if self._again:
            line = self._again.popleft()
        else:
            raw = self._file.readline(_MAX_LINE)
            if len(raw) == _MAX_LINE:
                while (rest := self._file.readline(_MAX_LINE)) and len(rest) == _MAX_LINE:
                    pass
                self.number += 1
                raise ValueError(f"longer than {_MAX_LINE / 2**20:.0f} MB")
            if not raw:
                raise StopIteration
            line = raw if isinstance(raw, str) else _decode(raw)
        self.number += 1
        self.taken.append(line)
        return line

    def begin(self) -> None:
        """A row begins here."""
        self.taken = []

    def give_back(self) -> str:
        """Give back all lines since `begin` but the first, which is returned."""
        first, *rest = self.taken
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)
        self.taken = [first]
        return first


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return decode_text(line)


class DelimitedTable:
    """A CSV or TSV file, row by row (a `Table`).

    The columns are parted by tabs if the name ends in .tsv or there is a tab in the first line, else by commas, or by
    semicolons where that line has no comma. Quotes are as spreadsheets write them; where that makes no sense of a line,
    its quotes are taken for what they are, characters.

    The first line is a header if one of its values is a name that means something (`url`, `caption`, `filepath`, … or
    one of `names`), in any case. Without one, a file of two columns of which just one is an address or the name of an
    image file is taken as it stands (CC3M's, say: caption, tab, address; quotes mean nothing there). Else the first
    line is a header too, with names that mean nothing.

    Args:
        path: the file.
        names: columns that the user has named.

    Raises:
        SourceError: it cannot be read, or is empty.
    """

    def __init__(self, path: str, names: Collection[str] = ()) -> None:
        self.path = path
        self.position = 0
        self.whole = True
        with _open(path) as lines:
            first = next((line for line in lines if line.strip()), "")
            self._separator = _separator(path, first)
            self._quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
            record = self._parse(first) if first else []
        if not record:
            raise SourceError(f"{path} is empty", allowed="a line for each image")
        places = [_is_place(cell) for cell in record]
        self._has_header = any(cell.strip() in names or cell.strip().lower() in _KNOWN_NAMES for cell in record)
        if not self._has_header and len(record) == 2 and sum(places) == 1:
            place = "url" if is_address(record[places.index(True)].strip()) else "filepath"
            header = [place if is_place else "caption" for is_place in places]
            if self._separator == "\t":
                self._quoting = csv.QUOTE_NONE
        else:
            self._has_header = True
            header = record
        self._header = _distinct(header)
        self.columns = dict.fromkeys(self._header, "text")

    def _parse(self, line: str) -> list[str]:
        choices: tuple[Literal[0, 3], ...] = (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)
        for quoting in choices:
            with contextlib.suppress(csv.Error, StopIteration):
                return next(csv.reader([line], delimiter=self._separator, quoting=quoting, strict=True))
        return []

    def read(self, wanted: Collection[str]) -> Iterator[Record]:
        """The rows, with the values of these columns: numbers where they read as such, None where they are empty.

        A row's key is its number among the rows that are not blank; lines that are broken count too.
        """
        texts = {name for name in wanted if match_name([name], (*CAPTION_NAMES, *URL_NAMES, *PATH_NAMES))}
        number = -2 if self._has_header else -1
        with _open(self.path) as lines:
            reader = csv.reader(lines, delimiter=self._separator, quoting=self._quoting, strict=True)
            while True:
                lines.begin()
                start = lines.number + 1
                found: list[str] | str
                try:
                    found = next(reader)
                    if not found or (len(found) == 1 < len(self._header) and not found[0].strip()):
                        continue
                except StopIteration:
                    return
                except (csv.Error, ValueError) as error:
                    found = f"broken line: {error}"
                except _BROKEN as error:
                    self.whole = False
                    yield Record("", "", f"broken file: {error}; what follows line {lines.number} is lost")
                    return
                swallowed = len(lines.taken) > 1 and len(found) != len(self._header)
                if lines.taken and (isinstance(found, str) or swallowed):
                    # A quote that does not end swallows lines: the first alone may make sense, the rest are read anew.
                    alone = csv.reader([lines.give_back()], delimiter=self._separator, quoting=csv.QUOTE_NONE)
                    with contextlib.suppress(csv.Error):
                        record = next(alone, [])
                        found = record if len(record) == len(self._header) else found
                if isinstance(found, list) and len(found) != len(self._header):
                    found = f"wrong number of columns: {len(found)}, not {len(self._header)}"
                number += 1
                self.position = lines.position
                if number < 0:
                    continue
                row: dict[str, object] | str = found if isinstance(found, str) else {}
                if isinstance(row, dict):
                    row = {
                        name: cell if name in texts else _value(cell)
                        for name, cell in zip(self._header, found, strict=True)
                        if name in wanted
                    }
                yield Record(str(number), f"line {start}", row)


class JsonLinesTable:
    """A file with a JSON object on each line (a `Table`). Its columns are those of its first hundred lines.

    Raises:
        SourceError: it cannot be read, or holds no object.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.position = 0
        self.whole = True
        self.columns: dict[str, str] = {}
        with _open(path) as lines:
            for _ in range(_JSON_SAMPLE):
                try:
                    line = next(lines, None)
                    record = json.loads(line) if line is not None and line.strip() else {}
                except (ValueError, RecursionError):
                    continue
                except _BROKEN:
                    break
                if line is None:
                    break
                for name, value in record.items() if isinstance(record, dict) else ():
                    if value is not None or name not in self.columns:
                        self.columns[name] = _json_type(value, self.columns.get(name))
        if not self.columns:
            raise SourceError(
                f"{path} holds no JSON object in its first {_JSON_SAMPLE} lines",
                allowed='one object a line, such as {"url": "https://…", "caption": "a cat"}',
            )
        # What is null wherever it is seen may be anything; a text costs nothing.
        self.columns = {name: kind or "text" for name, kind in self.columns.items()}

    def read(self, wanted: Collection[str]) -> Iterator[Record]:
        """The rows, with the values of these columns. A row's key is its number among the lines that are not blank."""
        number = -1
        with _open(self.path) as lines:
            while True:
                lines.begin()
                row: dict[str, object] | str
                try:
                    line = next(lines)
                    if not line.strip():
                        continue
                    found = json.loads(line)
                    row = (
                        {name: value for name, value in found.items() if name in wanted}
                        if isinstance(found, dict)
                        else f"not a JSON object: {line.strip()[:60]}"
                    )
                except StopIteration:
                    return
                except (ValueError, RecursionError) as error:
                    row = f"broken line: {error}"
                except _BROKEN as error:
                    self.whole = False
                    yield Record("", "", f"broken file: {error}; what follows line {lines.number} is lost")
                    return
                number += 1
                self.position = lines.position
                yield Record(str(number), f"line {lines.number}", row)


#: What a file raises that is cut short or damaged.
_BROKEN = (OSError, EOFError, zlib.error)


def _open(path: str) -> _Lines:
    try:
        return _Lines(path)
    except _BROKEN as error:
        raise SourceError(f"{path} cannot be read", found=str(error)) from None


def _separator(path: str, first: str) -> str:
    if "\t" in first or re.search(r"\.tsv(\.gz)?$", path.lower()):
        return "\t"
    return ";" if ";" in first and "," not in first else ","


def _is_place(cell: str) -> bool:
    text = cell.strip()
    return is_address(text) or (" " not in text and suffix_of(text) in image_suffixes() and text != suffix_of(text))


def _distinct(header: Sequence[str]) -> list[str]:
    names: list[str] = []
    for number, cell in enumerate(header, 1):
        name = cell.strip() or f"column {number}"
        names.append(name if name not in names else f"{name} {number}")
    return names


def _value(cell: str) -> object:
    """A cell as a number if it reads as one and would be written so again, or as a fraction; None if it is empty."""
    if not cell or cell.lower() == "nan":
        return None
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", cell):
        return int(cell)
    return float(cell) if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+(e[-+]?\d+)?", cell, re.IGNORECASE) else cell


def _json_type(value: object, known: str | None) -> str:
    """A value's type in the words of `find_roles`; "" if that cannot be told yet."""
    if value is None:
        return known or ""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "list of text"
    return known or type(value).__name__
