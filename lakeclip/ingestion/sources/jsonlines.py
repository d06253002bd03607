"""Rows of JSON lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator

from lakeclip.errors import SourceError
from lakeclip.lake.sources.lines import BROKEN, open_lines
from lakeclip.lake.sources.record import Record

#: So many lines are looked at to find out which columns there are.
_JSON_SAMPLE = 100


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
        with open_lines(path) as lines:
            for _ in range(_JSON_SAMPLE):
                try:
                    line = next(lines, None)
                    record = json.loads(line) if line is not None and line.strip() else {}
                except (ValueError, RecursionError):
                    continue
                except BROKEN:
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
        with open_lines(self.path) as lines:
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
                except BROKEN as error:
                    self.whole = False
                    yield Record("", "", f"broken file: {error}; what follows line {lines.number} is lost")
                    return
                number += 1
                self.position = lines.position
                yield Record(str(number), f"line {lines.number}", row)


def _json_type(value: object, known: str | None) -> str:
    """A value's type in the words of `find_roles`; "" if that cannot be told yet."""
    if value is None:
        return known or ""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "list of text"
    return known or type(value).__name__
