"""Source for lists of captions: Flickr8k's `captions.txt` and `Flickr8k.token.txt`, Flickr30k's `.token`."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.csv_layout import is_image_location
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.ingestion.sources.image_files import ImageFinder
from lakeclip.ingestion.sources.lines import READ_ERRORS, FileEncoding, Lines, find_encoding, open_lines
from lakeclip.ingestion.sources.record import Record, Table
from lakeclip.ingestion.sources.tables import Tables
from lakeclip.lake.columns import CAPTION_NAMES, IMAGE_NAMES, PATH_NAMES, URL_NAMES

_SUFFIXES = (".txt", ".token", ".lst", ".tab")
#: A line of Flickr8k.token.txt: `1000268201_693b08cb0e.jpg#0<tab>A child in a pink dress …`.
_TOKEN = re.compile(r"\ufeff?([^\t#]+\.[A-Za-z]{3,4})#\d+[\t ]\s*(.*?)\s*", re.DOTALL)
_SAMPLE_LINES = 100
_COLUMNS = {"filepath": "text", "caption": "text"}


class TokenTable:
    """A file of lines `NAME#NUMBER<tab>CAPTION` (a `Table`).

    Raises:
        SourceError: the file cannot be read.
    """

    def __init__(self, path: str, encoding: FileEncoding | None = None) -> None:
        self.columns = dict(_COLUMNS)
        self.position = 0
        self.is_complete = True
        self.unreadable: dict[str, str] = {}
        self._path = path
        self._encoding = encoding
        self._lines: Lines | None = None
        self._sample: list[dict[str, object]] = []
        for record in self.read(_COLUMNS):
            if isinstance(record.values, dict):
                self._sample.append(record.values)
            if len(self._sample) >= _SAMPLE_LINES:
                break
        self.position = 0

    @property
    def sample(self) -> Sequence[Mapping[str, object]]:
        """The first lines."""
        return self._sample

    def resolve(self, name: str) -> str:
        """Return the column that a user means."""
        return name

    def notes(self) -> list[str]:
        """Describe how the file was read."""
        return self._lines.notes() if self._lines is not None else []

    def read(self, columns: Collection[str], texts: Collection[str] = ()) -> Iterator[Record]:
        """Yield the rows with the values of these columns."""
        number = -1
        with open_lines(self._path, self._encoding) as lines:
            self._lines = lines
            while True:
                values: dict[str, object] | str
                lines.start_row()
                try:
                    line = next(lines)
                    if not line.strip():
                        continue
                    match = _TOKEN.fullmatch(line)
                    if match is None:
                        values = f"not a line of NAME#NUMBER and a caption: {line.strip()[:60]}"
                    else:
                        row = {"filepath": match[1], "caption": match[2]}
                        values = {name: value for name, value in row.items() if name in columns}
                except StopIteration:
                    return
                except READ_ERRORS as error:
                    self.is_complete = False
                    yield Record("", "", f"broken file: {error}; everything after line {lines.number} is lost", 0)
                    return
                except ValueError as error:
                    values = f"broken line: {error}"
                number += 1
                self.position = lines.position
                yield Record(str(number), f"line {lines.number}", values)


class CaptionLists(Tables):
    """Rows of lists of captions (a `Source`)."""

    def _open_file(self, path: str) -> Table:
        if _TOKEN.fullmatch(_first_line(path, self._encoding)) is not None:
            return TokenTable(path, self._find_encoding(path))
        return super()._open_file(path)


def _first_line(path: str, encoding: str | None = None) -> str:
    with (
        contextlib.suppress(SourceError, ValueError, *READ_ERRORS),
        open_lines(path, find_encoding(path, encoding)) as lines,
    ):
        return next((line for line in lines if line.strip()), "")
    return ""


def _matches(path: str) -> bool:
    """Return whether the first line of a text file names an image, or the columns of images and captions."""
    if not path.lower().endswith(_SUFFIXES) or not os.path.isfile(path):
        return False
    first = _first_line(path)
    if _TOKEN.fullmatch(first) is not None:
        return True
    cells = [cell.strip().strip('"') for cell in re.split(r"[\t,;|]", first)]
    if len(cells) < 2:
        return False
    names = {cell.lower() for cell in cells}
    has_header = names & {*IMAGE_NAMES, *PATH_NAMES, *URL_NAMES} and names & {*CAPTION_NAMES, "comment"}
    return bool(has_header) or is_image_location(cells[0]) or ("\t" in first and ImageFinder(path).has(cells[0]))


def _open(paths: Sequence[str], options: SourceOptions) -> list[Tables]:
    return [CaptionLists.open(paths, options)]


FORMAT = SourceFormat(
    "caption list",
    "lists of captions (.txt, .token, as of Flickr8k and Flickr30k)",
    _open,
    matches=_matches,
    sniffed=(".txt", ".token"),
    beside_images=_SUFFIXES,
    has_columns=True,
    options=("encoding", "delimiter", "image_root"),
)
