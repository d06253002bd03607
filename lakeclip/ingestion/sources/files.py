"""`FileSource`, the base class of sources that read files one after another, and the names of their parts."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Account, Sample, file_fingerprint
from lakeclip.lake.folder.records import Collision, Rejected


class FileSource:
    """Files that are read one after another (a `Source`). Subclasses define `read_file`.

    Each file is a part of the source. A second ingest skips the files that have been read to the end and have not
    changed. If whole folders are read, the rows of files that are no longer in them are counted as removed.

    Args:
        paths: the files, in order.
        parts: a name for each file; by default its base name. See `name_parts`.

    Attributes:
        folders: folders of which this source reads all files of its format.

    Raises:
        SourceError: a file does not exist.
    """

    #: What messages call such a file.
    file_kind = "file"

    def __init__(self, paths: Sequence[str], parts: Sequence[str] | None = None) -> None:
        self.name = paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}"
        self.part = ""
        self.position = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self.mapping: dict[str, str] = {}
        self.completed: list[tuple[str, int]] = []
        self.account = Account()
        self.notes: list[str] = []
        self.folders: list[str] = []
        self._paths = list(paths)
        self._parts = list(parts) if parts is not None else [os.path.basename(path) for path in self._paths]
        self._skipped: frozenset[tuple[str, int]] = frozenset()
        self._size_before = 0
        for path in self._paths:
            if not os.path.isfile(path):
                found = "a folder" if os.path.isdir(path) else "nothing at this path"
                raise SourceError(f"there is no {self.file_kind} {path}", found=found)
        self.size = sum(map(os.path.getsize, self._paths))

    def read_file(self, path: str) -> Generator[Sample | Rejected, None, bool]:
        """Yield each sample of one file, and a `Rejected` for each item that cannot become one.

        Returns:
            True if the file was read to its end. False if it is damaged: a later ingest reads it again.
        """
        raise NotImplementedError

    @property
    def locations(self) -> dict[str, str]:
        """Part → path of each file."""
        return dict(zip(self._parts, self._paths, strict=True))

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        """Skip these files (part, fingerprint)."""
        self._skipped = frozenset(completed)

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for path, part in zip(self._paths, self._parts, strict=True):
            size, fingerprint = os.path.getsize(path), file_fingerprint(path)
            self.account.add_read("files")
            if (part, fingerprint) in self._skipped:
                self.account.add_left_out("files", "in the lake already: unchanged since it was read to the end")
            else:
                self.account.add_used("files")
                self.part = part
                if (yield from self.read_file(path)):
                    self.completed.append((part, fingerprint))
            self._size_before += size
            self.position = self._size_before

    def leave_out_files(self, files: Mapping[str, int]) -> None:
        """Count files (suffix → number) that lie beside those of this source and are not read."""
        self.ignored.update(files)
        for suffix, count in files.items():
            self.account.add_read("files", count)
            self.account.add_left_out("files", f"{suffix} files beside those that are read", count)

    def _advance(self, offset: int) -> None:
        """Update `position`: so many bytes of the current file have been read."""
        self.position = self._size_before + offset


def name_parts(paths: Sequence[str]) -> list[str]:
    """Name each path by its last two components, or by more if two paths would share a name.

    Two components are used even where one would suffice: the name must stay the same in a later ingest that has other
    paths beside it. The same path twice gets the same name.
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
    absolute = path if "://" in path else os.path.abspath(path)
    return tuple(part for part in absolute.replace(os.sep, "/").split("/") if part) or (path,)
