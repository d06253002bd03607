"""What sources of several files have in common: which is being read, which a second run need not read again."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Sequence

from lakeclip.errors import SourceError
from lakeclip.lake.sources.base import Collision, Rejected, Sample, stamp


class Files:
    """Files on their way into a lake, one after another (a `Source`, once `_read` is given).

    Args:
        name: what the user called them.
        paths: the files, in order.
        parts: what to call each, if not by its base name; see `name_parts`.
        kind: what kind of file they are, for errors.

    Raises:
        SourceError: one of them does not exist.
    """

    def __init__(self, name: str, paths: Sequence[str], parts: Sequence[str] | None = None, kind: str = "file") -> None:
        self.name = name
        self.part = ""
        self.position = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self.mapping: dict[str, str] = {}
        self.ended: list[tuple[str, int]] = []
        self._paths = list(paths)
        self._parts = list(parts) if parts is not None else [os.path.basename(path) for path in self._paths]
        self._done: frozenset[tuple[str, int]] = frozenset()
        self._before = 0
        for path in self._paths:
            if not os.path.isfile(path):
                raise SourceError(
                    f"there is no {kind} {path}", found="a folder" if os.path.isdir(path) else "nothing there"
                )
        self.size = sum(map(os.path.getsize, self._paths))

    def skip_parts(self, done: Collection[tuple[str, int]]) -> None:
        """Do not read these files (part, stamp) again."""
        # A folder that was renamed has not changed its files.
        self._done = frozenset((os.path.basename(part), stamp_) for part, stamp_ in done)

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for path, part in zip(self._paths, self._parts, strict=True):
            size, file = os.path.getsize(path), (part, stamp(path))
            if (os.path.basename(part), file[1]) not in self._done:
                self.part = part
                if (yield from self._read(path)):
                    self.ended.append(file)
            self._before += size
            self.position = self._before

    def _read(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        """Everything in one file. The generator's return value says whether it could be read to its end."""
        raise NotImplementedError

    def _advance(self, offset: int) -> None:
        """Say how far the file that is being read has been read."""
        self.position = self._before + offset


def name_parts(paths: Sequence[str]) -> list[str]:
    """What to call each of these paths in a lake: its last two components, or as many as tell it from the rest.

    Two even where one would do, for the name must be the same in a later call that has others beside it. The same path
    twice is the same part.
    """
    split = [_components(path) for path in paths]
    groups: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for components in split:
        groups[components[-1]].add(components)
    lengths: dict[str, int] = {}
    for base, group in groups.items():
        length = 2
        while len({components[-length:] for components in group}) < len(group):
            length += 1
        lengths[base] = length
    return ["/".join(components[-lengths[components[-1]] :]) for components in split]


def _components(path: str) -> tuple[str, ...]:
    whole = path if "://" in path else os.path.abspath(path)
    return tuple(part for part in whole.replace(os.sep, "/").split("/") if part) or (path,)
