"""Layout of a CSV file, inferred from its first lines: separator, quotes, header, and what its columns hold."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from lakeclip.ingestion.sources.embedded_images import is_embedded_image
from lakeclip.ingestion.sources.lines import MAX_LINE
from lakeclip.lake.columns import CAPTION_NAMES, IMAGE_NAMES, PATH_NAMES, URL_NAMES
from lakeclip.lake.images import image_suffixes, suffix_of

KNOWN_NAMES = frozenset((*IMAGE_NAMES, *CAPTION_NAMES, *URL_NAMES, *PATH_NAMES))
_SEPARATORS = ("\t", ",", ";", "|")
#: An address: with a scheme, or "//host.name/path", which stands for https.
_URL = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://\S+|//[^\s/.]+(\.[^\s/.]+)+/\S", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")

# Python's limit of 128 KB for a cell is too low for an image in a cell; lines have their own limit.
csv.field_size_limit(MAX_LINE)


class Layout(NamedTuple):
    """Notation of a CSV file.

    Attributes:
        separator: separator of the columns.
        quoting: whether quotes enclose cells, or are ordinary characters.
        has_blanks: whether blanks around cells are not part of them (Flickr30k: `| `).
        header: names of the columns.
        has_header: whether the first line holds them.
        first: cells of the first line that is not blank.
        notes: what was guessed.
    """

    separator: str
    quoting: Literal[0, 3]
    has_blanks: bool
    header: list[str]
    has_header: bool
    first: list[str]
    notes: list[str]


def infer_layout(
    path: str,
    lines: Sequence[str],
    chosen: Collection[str],
    delimiter: str | None,
    is_image: Callable[[str], bool] | None = None,
) -> Layout | None:
    """Infer the layout of a table; None if it is empty.

    Args:
        path: the file; a name in .tsv is a hint.
        lines: its first lines.
        chosen: columns that the user has named.
        delimiter: the user's choice of the separator.
        is_image: whether a cell is the name of an image that exists.
    """
    first = next((line for line in lines if line.strip()), "")
    if not first:
        return None
    separator = delimiter or _find_separator(path, first, lines, chosen)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    cells = parse_line(first, separator)
    blanks = len(cells) > 1 and all(cell[:1] == " " and cell.strip() for cell in cells[1:])
    if blanks:
        cells = [cell.strip() for cell in cells]
    locations = [is_image_location(cell) for cell in cells]
    if is_image is not None and not any(locations) and not any(cell.strip().lower() in KNOWN_NAMES for cell in cells):
        locations = [is_image(cell) for cell in cells]
    notes = []
    if separator != delimiter and separator == "|":
        notes.append("columns are separated by '|'; --delimiter decides")
    has_header = not any(locations) and _is_header(cells, lines, separator, chosen)
    if has_header:
        header = distinct_names(cells)
        if [name for name, cell in zip(header, cells, strict=True) if cell.strip() and name != cell.strip()]:
            notes.append(f"a name is used twice in the header, so these columns are called {', '.join(header)}")
    else:
        # The first line may have a separator too many.
        cells = _usual_row(cells, lines, separator)
        if len(cells) != len(locations):
            locations = [is_image_location(cell) for cell in cells]
        header = _name_columns(cells, locations, lines, separator)
        if sum(locations) == 1 == len(cells) - 1 and separator == "\t":
            quoting = csv.QUOTE_NONE
        notes.append(
            f"the first line is a row, not a header; its columns are called {', '.join(header)}: "
            "--image-column NUMBER and --caption-column NUMBER choose others"
        )
    return Layout(separator, quoting, blanks, header, has_header, cells, notes)


def parse_rows(lines: Iterable[str], separator: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> list[list[str]]:
    """Return the rows in some lines, up to the first that cannot be parsed."""
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows += (row for row in csv.reader(lines, delimiter=separator, quoting=quoting) if row)
    return rows


def _usual_row(cells: list[str], lines: Sequence[str], separator: str) -> list[str]:
    """Return the first row that has as many cells as most rows have, without an image in another place."""
    rows = parse_rows(lines, separator)
    widths = Counter(map(len, rows))
    width = max(widths, key=lambda width: (widths[width], -width), default=len(cells))
    return next((row for row in rows if len(row) == width > 1), cells)


def parse_line(line: str, separator: str) -> list[str]:
    """Return the cells of one line; its quotes are ordinary characters if they are not paired."""
    choices: tuple[Literal[0, 3], ...] = (csv.QUOTE_MINIMAL, csv.QUOTE_NONE)
    for quoting in choices:
        with contextlib.suppress(csv.Error, StopIteration):
            return next(csv.reader([line], delimiter=separator, quoting=quoting, strict=True))
    return []


def _find_separator(path: str, first: str, lines: Sequence[str], chosen: Collection[str]) -> str:
    """Choose the separator that finds known names or images in the first line, or else most regular columns."""
    if re.search(r"\.(tsv|tab)(\.gz)?$", path.lower()) and "\t" in first:
        return "\t"
    best, best_score = ",", (0, 0.0)
    for separator in _SEPARATORS:
        cells = parse_line(first, separator)
        if len(cells) < 2:
            continue
        names = [cell.strip() for cell in cells]
        known = sum(
            name in chosen or name.lower() in KNOWN_NAMES or is_image_location(name) or is_embedded_image(name)
            for name in names
        )
        rows = parse_rows(lines, separator)
        regular = sum(len(row) == len(cells) for row in rows) / max(len(rows), 1)
        # A tab is hardly ever part of a text.
        if (known, regular + (separator == "\t")) > best_score:
            best, best_score = separator, (known, regular + (separator == "\t"))
    return best


def _is_header(cells: Sequence[str], lines: Sequence[str], separator: str, chosen: Collection[str]) -> bool:
    """Return whether the first line, which holds no image, names the columns."""
    if any(cell.strip() in chosen or cell.strip().lower() in KNOWN_NAMES for cell in cells):
        return True
    if any(is_embedded_image(cell) for cell in cells):
        return False
    numbers = [bool(_NUMBER.fullmatch(cell.strip())) for cell in cells]
    if not any(numbers) or all(numbers):
        return True  # pandas writes 0,1,2 if the columns have no names
    rows = [row for row in parse_rows(lines, separator) if len(row) == len(cells)][1:100]
    columns = list(zip(*rows, strict=True))
    # A number above numbers is a row: names of columns are words.
    return not rows or not any(
        is_number and sum(bool(_NUMBER.fullmatch(cell.strip())) for cell in column) > len(rows) / 2
        for is_number, column in zip(numbers, columns, strict=True)
    )


def _name_columns(cells: Sequence[str], locations: Sequence[bool], lines: Sequence[str], separator: str) -> list[str]:
    """Name the columns of a table without a header: url, filepath, caption, column 4."""
    names = [f"column {number}" for number in range(1, len(cells) + 1)]
    for number, (cell, is_location) in enumerate(zip(cells, locations, strict=True)):
        if is_location and (name := "url" if is_url(cell.strip()) else "filepath") not in names:
            names[number] = name
    others = [number for number, name in enumerate(names) if name.startswith("column ")]
    if len(cells) > 2:
        rows = [row for row in parse_rows(lines, separator) if len(row) == len(cells)]
        others = [number for number in others if is_prose([row[number] for row in rows])]
    if len(others) == 1:
        names[others[0]] = "caption"
    return names


def is_prose(values: Sequence[object]) -> bool:
    """Return whether values are texts of several words, most of them different: captions or descriptions."""
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    words = sum(" " in text and not is_url(text) and not is_embedded_image(text) for text in texts)
    return bool(texts) and words > len(texts) / 2 and len(set(texts)) > len(texts) / 3


def is_number(text: str) -> bool:
    """Return whether a cell is a number."""
    return _NUMBER.fullmatch(text.strip()) is not None


def is_url(text: str) -> bool:
    """Return whether a text is a URL (https://…, s3://…) and not a file name."""
    return _URL.match(text) is not None


def is_image_location(cell: str) -> bool:
    """Return whether a cell is a URL or the name of an image file."""
    text = cell.strip()
    return is_url(text) or (
        len(text) < 4096 and " " not in text and suffix_of(text) in image_suffixes() and text != suffix_of(text)
    )


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return a different name for each column: `caption`, `caption 3`; `column 2` for one without a name."""
    found: list[str] = []
    for number, cell in enumerate(names, 1):
        name = cell.strip() or f"column {number}"
        while name in found:
            name = f"{name} {number}"
        found.append(name)
    return found
