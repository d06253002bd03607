"""Rows of CSV and TSV files."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from lakeclip.errors import SourceError
from lakeclip.lake.columns import CAPTION_NAMES, IMAGE_NAMES, PATH_NAMES, URL_NAMES
from lakeclip.lake.sources.images import image_suffixes, suffix_of
from lakeclip.lake.sources.lines import BROKEN, open_lines
from lakeclip.lake.sources.record import Record
from lakeclip.lake.sources.roles import is_address

_KNOWN_NAMES = frozenset((*IMAGE_NAMES, *CAPTION_NAMES, *URL_NAMES, *PATH_NAMES))


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
        self._chosen = frozenset(names)
        self.position = 0
        self.whole = True
        with open_lines(path) as lines:
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
        texts = {name for name in wanted if name in self._chosen or name.lower() in _KNOWN_NAMES}
        number = -2 if self._has_header else -1
        with open_lines(self.path) as lines:
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
                except BROKEN as error:
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
