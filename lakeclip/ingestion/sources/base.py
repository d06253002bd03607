"""Samples and the `Source` protocol: what every reader of image-caption data yields to the writer."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from lakeclip.lake.folder.account import Account as Account
from lakeclip.lake.folder.records import Collision, Rejected


class Sample(NamedTuple):
    """An image with its captions, or the URL of an image that has not been downloaded.

    Attributes:
        key: name of the sample within its source.
        image: the encoded image, byte for byte; empty if there is only a URL.
        captions: captions, best first; empty if there are none (in a labelled test set, for example).
        metadata: further values by name; each name becomes a column of the lake. None is a missing value. A value that
            is neither text nor a number (a list, for example) is stored as JSON.
        url: URL of the image, or "". A URL from a column is also in the metadata.
        unusable: why there is a URL but no image: "not downloaded", "HTTP 404".
        replaces: number of the lake's row that holds an earlier version of the sample and gets this one; None to add a
            row. Sources leave it as it is.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    metadata: Mapping[str, object]
    url: str = ""
    unusable: str = ""
    replaces: int | None = None


def file_fingerprint(path: str) -> int:
    """Return a number that changes when the size or the modification time of a file changes."""
    status = os.stat(path)
    return zlib.crc32(f"{status.st_size} {status.st_mtime_ns}".encode())


@runtime_checkable
class Source(Protocol):
    """A reader of samples. Iterating reads the source once, in bounded memory.

    A source may consist of parts (tar files, tables). Each row of the lake stores the part that it came from.

    Attributes:
        name: name for messages and reports.
        part: the part that is being read; "" if the source has no parts.
        size: amount of data in a unit of the source's choice (pairs, bytes); known once iteration has begun.
        position: amount of data read so far, in the same unit.
        collisions: files that claim the same name; complete when iteration ends.
        ignored: number of files or columns that are not used, by suffix or by name.
        mapping: role → column, for sources that have columns.
        completed: parts that have been read to the end, each with its `file_fingerprint`.

    A source may also have these attributes:

    - `account`: an `Account` of everything that it reads; see `account_of`.
    - `notes`: messages about how it was read, complete when iteration ends; see `notes_of`.
    - `locations`: part → whole path or address, by which a lake knows the source again; by default its name.
    - `folders`: folders that it reads as a whole: rows of files that are gone from them are counted as removed.
    - `keys_are_numbers`: True if keys are positions, which mean nothing once rows have been inserted or removed.
    """

    # Read-only properties, so that a wrapper may delegate them.
    @property
    def name(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def collisions(self) -> list[Collision]: ...
    @property
    def ignored(self) -> Counter[str]: ...
    @property
    def mapping(self) -> dict[str, str]: ...
    @property
    def completed(self) -> list[tuple[str, int]]: ...

    def __iter__(self) -> Iterator[Sample | Rejected]:
        """Yield each sample, and a `Rejected` for each item that cannot become one."""

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        """Skip these parts (name, fingerprint): the lake holds all of their rows."""


def account_of(source: Source) -> Account:
    """Return the account of what a source has read; an empty one if the source, from another package, has none."""
    account = getattr(source, "account", None)
    return account if isinstance(account, Account) else Account()


def notes_of(source: Source) -> list[str]:
    """Return what a source says about how it was read: encodings that were detected, columns that were guessed."""
    return list(getattr(source, "notes", ()))


class SourceWrapper:
    """Base class of sources that wrap another source. It delegates all attributes; subclasses define `__iter__`.

    Args:
        source: the source to wrap.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def part(self) -> str:
        return self._source.part

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def position(self) -> int:
        return self._source.position

    @property
    def collisions(self) -> list[Collision]:
        return self._source.collisions

    @property
    def ignored(self) -> Counter[str]:
        return self._source.ignored

    @property
    def mapping(self) -> dict[str, str]:
        return self._source.mapping

    @property
    def completed(self) -> list[tuple[str, int]]:
        return self._source.completed

    @property
    def account(self) -> Account:
        return account_of(self._source)

    @property
    def notes(self) -> list[str]:
        return notes_of(self._source)

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        self._source.skip_parts(completed)


class Samples:
    """Samples from an iterable as a `Source`.

    Args:
        name: name for messages and reports.
        samples: the samples; read once.
        size: number of samples, for the progress bar.
    """

    def __init__(self, name: str, samples: Iterable[Sample | Rejected], size: int) -> None:
        self.name = name
        self.part = ""
        self.size = size
        self.position = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self.mapping: dict[str, str] = {}
        self.completed: list[tuple[str, int]] = []
        self._samples = samples

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        """Do nothing: the samples have no parts."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for sample in self._samples:
            self.position += 1
            yield sample
