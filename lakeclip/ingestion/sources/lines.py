"""Lines of text files in any encoding, compressed with gzip or not."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from lakeclip.errors import SourceError
from lakeclip.lake.encodings import (
    MAX_SAMPLE,
    Encoding,
    Utf8Counts,
    count_lines,
    count_utf8,
    detect,
    display_name,
    find_mark,
    is_mostly_utf8,
    is_utf8,
    sample_lines,
)

#: Limit on the bytes of a line. It bounds the memory that a file without line ends takes.
MAX_LINE = 16 * 2**20
#: Errors that reading a truncated or damaged file raises.
READ_ERRORS = (OSError, EOFError, zlib.error)
_CHUNK = 2**20


class FileEncoding(NamedTuple):
    """Encodings of the lines of a file.

    Attributes:
        encoding: the encoding of the file.
        fallback: encoding of single lines that are not UTF-8 in a file that is; None: their broken bytes become U+FFFD.
        newline: end of the lines; a carriage return in files of old Macs.
    """

    encoding: Encoding
    fallback: str | None = None
    newline: str = "\n"


class Lines(Iterator[str]):
    """Iterator of the lines of a file. The lines read since `start_row` can be put back.

    Attributes:
        number: number of the line that was read last, from 1.
        row_lines: lines read since `start_row`.
        damaged: number of lines with bytes that the encoding does not have.
        first_damaged: numbers of the first of them.
        is_at_end: whether `read_text` has reached the end.
    """

    def __init__(self, path: str, encoding: FileEncoding | None = None) -> None:
        self.number = 0
        self.row_lines: list[str] = []
        self.damaged = 0
        self.first_damaged: list[int] = []
        self.file_encoding = encoding or find_encoding(path)
        self._encoding = self.file_encoding.encoding
        self.is_at_end = False
        self._decoder: codecs.IncrementalDecoder | None = None
        self._put_back: deque[str] = deque()
        with contextlib.ExitStack() as stack:
            self._raw = stack.enter_context(open(path, "rb", buffering=2**18))
            file: Any = self._raw
            if path.lower().endswith(".gz"):
                # No further buffer: it would lose the data before a damaged position.
                file = stack.enter_context(gzip.GzipFile(fileobj=self._raw))
            self._file: BinaryIO | io.TextIOWrapper = file
            newline = self.file_encoding.newline
            if self._encoding.is_wide or newline != "\n":
                self._file = stack.enter_context(
                    io.TextIOWrapper(file, self._encoding.name, "replace", newline=newline)
                )
            self._stack = stack.pop_all()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def position(self) -> int:
        """Bytes of the file on disk that have been read."""
        return self._raw.tell()

    def __next__(self) -> str:
        if self._put_back:
            line = self._put_back.popleft()
            self.number += 1
        else:
            raw = self._file.readline(MAX_LINE)
            if len(raw) == MAX_LINE:
                while (rest := self._file.readline(MAX_LINE)) and len(rest) == MAX_LINE:
                    pass
                self.number += 1
                raise ValueError(f"longer than {MAX_LINE / 2**20:.0f} MB")
            if not raw:
                raise StopIteration
            self.number += 1
            line = self._check(raw) if isinstance(raw, str) else self._decode(raw)
            if self.number == 1:
                line = line.removeprefix("\ufeff")
        if line.endswith("\r"):
            line = line[:-1] + "\n"
        self.row_lines.append(line)
        return line

    def read_text(self, size: int) -> str:
        """Return about so many characters, of whole lines if possible; sets `is_at_end`."""
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder(self._encoding.name)("replace")
        raw = self._file.read(size)
        self.is_at_end = not raw
        text = raw if isinstance(raw, str) else self._decoder.decode(raw, self.is_at_end)
        self._check(text)
        text, self.number = text if self.number else text.removeprefix("\ufeff"), self.number + 1
        return text

    def start_row(self) -> None:
        """Start a new row with the next line."""
        self.row_lines = []

    def put_back(self) -> str:
        """Put back all lines since `start_row` except the first, and return that one."""
        first, *rest = self.row_lines
        self._put_back.extendleft(reversed(rest))
        self.number -= len(rest)
        self.row_lines = [first]
        return first

    def notes(self) -> list[str]:
        """Describe how the file was read, if that is not evident."""
        how = self._encoding.describe()
        notes = [how] if how else []
        if self.damaged:
            numbers = ", ".join(map(str, self.first_damaged)) + (
                ", …" if self.damaged > len(self.first_damaged) else ""
            )
            fallback = self.file_encoding.fallback
            outcome = f"read as {display_name(fallback)} where they fit it, otherwise with U+FFFD" if fallback else ""
            notes.append(
                f"{self.damaged:,} lines are not {self._encoding.display_name} (line {numbers}): "
                f"{outcome or 'their broken bytes are replaced by U+FFFD'}; --encoding decides"
            )
        return notes

    def _decode(self, line: bytes) -> str:
        try:
            return line.decode(self._encoding.name)
        except UnicodeDecodeError:
            self._count_damaged()
            fallback = self.file_encoding.fallback
            if fallback is not None and not count_utf8(line)[0]:
                return line.decode(fallback, "replace")
            return line.decode(self._encoding.name, "replace")

    def _check(self, line: str) -> str:
        if "\ufffd" in line:
            self._count_damaged()
        return line

    def _count_damaged(self) -> None:
        self.damaged += 1
        if len(self.first_damaged) < 5:
            self.first_damaged.append(self.number)


def find_encoding(path: str, chosen: str | None = None) -> FileEncoding:
    """Find the encoding of a text file by reading it once; damaged files up to the damage.

    Args:
        path: the file, compressed with gzip or not.
        chosen: the user's choice.
    """
    if chosen is not None:
        return FileEncoding(Encoding(chosen, "chosen"), newline=_find_newline(path))
    counts, size = Utf8Counts(0, 0, 0), 0
    samples: list[bytes] = []
    with contextlib.suppress(*READ_ERRORS), contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        if path.lower().endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        rest = b""
        is_first = True
        while True:
            try:
                data = file.read(_CHUNK)
            except READ_ERRORS:
                data = b""
            if is_first and (marked := find_mark(data[:4096])):
                return FileEncoding(marked)
            is_first = False
            block, _, rest = (rest + data).rpartition(b"\n") if data else (rest, b"", b"")
            if len(rest) > MAX_LINE:
                rest = b""
            if not block.isascii() or b"\x1b$" in block:
                if is_utf8(block):
                    counts = counts._replace(whole=counts.whole + count_utf8(block)[0])
                    if b"\x1b$" in block and size < MAX_SAMPLE:
                        samples.append(sample_lines(block, 8192))
                else:
                    counts = Utf8Counts(*map(sum, zip(counts, count_lines(block), strict=True)))
                    if size < MAX_SAMPLE:
                        samples.append(_invalid_lines(block, 8192))
                size = sum(map(len, samples))
                if size >= MAX_SAMPLE and counts.errors > 1000 and not is_mostly_utf8(counts):
                    break
            if not data:
                break
    sample = b"\n".join(samples)
    if counts.errors and is_mostly_utf8(counts):
        lines = b"\n".join(line for line in sample.split(b"\n") if not count_utf8(line)[0])
        found = detect(lines) if lines else None
        return FileEncoding(Encoding("utf-8", "valid"), found.name if found and found.is_sure else None)
    return FileEncoding(detect(sample) if sample else Encoding("utf-8", "valid"), newline=_find_newline(path))


def _find_newline(path: str) -> str:
    """Return what ends the lines of a file: a carriage return alone if it has no line feed."""
    with contextlib.suppress(*READ_ERRORS), contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        if path.lower().endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        start = file.read(2**16)
        return "\r" if b"\r" in start and b"\n" not in start else "\n"
    return "\n"


def _invalid_lines(block: bytes, limit: int) -> bytes:
    """Return lines that are not valid UTF-8, up to a number of bytes."""
    lines, size = [], 0
    for line in block.split(b"\n"):
        if not line.isascii() and not is_utf8(line):
            lines.append(line[:4096])
            size += len(lines[-1])
            if size >= limit:
                break
    return b"\n".join(lines)


def open_lines(path: str, encoding: FileEncoding | None = None) -> Lines:
    """Open a text file.

    Args:
        path: the file.
        encoding: how it is decoded; detected by default, which reads the file once more.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        return Lines(path, encoding)
    except READ_ERRORS as error:
        raise SourceError(f"{path} cannot be read", found=str(error)) from None
