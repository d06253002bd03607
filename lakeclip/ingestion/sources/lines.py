"""Lines of text files, compressed with gzip or not, in whatever encoding they were saved."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

from lakeclip.errors import SourceError
from lakeclip.lake.sources.captions import decode_text

#: Longer lines than this are no rows; what reads on for ever without a line's end is no text.
_MAX_LINE = 16 * 2**20
#: What a file raises that is cut short or damaged.
BROKEN = (OSError, EOFError, zlib.error)


class Lines(Iterator[str]):
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

    def __enter__(self) -> Lines:
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


def open_lines(path: str) -> Lines:
    """Open a text file.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return Lines(path)
    except BROKEN as error:
        raise SourceError(f"{path} cannot be read", found=str(error)) from None
