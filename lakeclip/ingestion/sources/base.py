"""What every source of pairs yields, so that the writer need not know where a pair came from."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable


class Sample(NamedTuple):
    """One picture with its captions, as found; or, with no bytes but an address, where the picture can be had.

    Attributes:
        key: its name within the source.
        image: the encoded image, byte for byte.
        captions: its captions, best first; empty if it has none (a labelled test set, say).
        metadata: further values by name; they become columns of the lake. None is a missing value, and what is neither
            text nor a number (a list, say) is stored as JSON.
        url: the picture's address, if there is one. (Where it comes from a column, that is among the metadata too.)
        unusable: why there is an address but no picture: "not downloaded", "HTTP 404".
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    metadata: Mapping[str, object]
    url: str = ""
    unusable: str = ""


class Rejected(NamedTuple):
    """Something in the source that cannot become a row.

    Attributes:
        key: its name within the source.
        reason: "kind" or "kind: detail"; the final account groups by kind.
    """

    key: str
    reason: str


class Collision(NamedTuple):
    """Files that claim the same name.

    Attributes:
        key: the name.
        paths: every file that has it.
        outcome: what was done about it.
    """

    key: str
    paths: tuple[str, ...]
    outcome: str


def stamp(path: str) -> int:
    """A number that is another one once a file has changed, as far as its size and its time tell."""
    status = os.stat(path)
    return zlib.crc32(f"{status.st_size} {status.st_mtime_ns}".encode())


@runtime_checkable
class Source(Protocol):
    """A folder or an archive on its way into a lake. Iterating reads it once, in bounded memory.

    Attributes:
        name: what to call it.
        part: the archive that is being read just now; "" if the source has no parts.
        size: how much there is, in units of its own (pairs, bytes); known once iteration has begun.
        position: how much of that is done.
        collisions: files that claim the same name; complete when iteration ends.
        ignored: suffixes of files that are none of ours, and how many have them.
        mapping: what is taken from which column, for those that have columns.
        ended: parts that have been read to their end, each with its `stamp`; for a second run to pass over.
    """

    # Read-only here, so that a source that wraps another may hand them through.
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
    def ended(self) -> list[tuple[str, int]]: ...

    def __iter__(self) -> Iterator[Sample | Rejected]:
        """Every sample, and everything that should have been one."""

    def skip_parts(self, done: Collection[tuple[str, int]]) -> None:
        """Do not read these parts (name, stamp): they are in the lake, whole."""


class Around:
    """A source around another: what it says of itself is what the other says. Its subclasses iterate.

    Args:
        source: the other.
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
    def ended(self) -> list[tuple[str, int]]:
        return self._source.ended

    def skip_parts(self, done: Collection[tuple[str, int]]) -> None:
        self._source.skip_parts(done)


class Samples:
    """Samples made in memory as a `Source`.

    Args:
        name: what to call them.
        samples: the samples; read once.
        size: how many there are, for the progress bar.
    """

    def __init__(self, name: str, samples: Iterable[Sample | Rejected], size: int) -> None:
        self.name = name
        self.part = ""
        self.size = size
        self.position = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self.mapping: dict[str, str] = {}
        self.ended: list[tuple[str, int]] = []
        self._samples = samples

    def skip_parts(self, done: Collection[tuple[str, int]]) -> None:
        """There are none."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for sample in self._samples:
            self.position += 1
            yield sample
