"""A folder of pairs: on its way into a lake, or read straight from its files. `pairing` says what makes a pair."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.errors import SourceError
from lakeclip.lake.rows import Row
from lakeclip.lake.sources.base import Rejected, Sample
from lakeclip.lake.sources.captions import parse_captions
from lakeclip.lake.sources.images import MAX_FILE_BYTES
from lakeclip.lake.sources.pairing import Pair, Pairing, list_pairs


def read_file(path: str) -> bytes | str:
    """A file's bytes, or the reason why there are none."""
    try:
        size = os.stat(path).st_size
        if not os.path.isfile(path):
            return "cannot be read: not a regular file"
        if size > MAX_FILE_BYTES:
            return f"too large: {size / 2**20:,.0f} MB"
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


class FolderPairs:
    """A folder of pairs on its way into a lake (a `Source`).

    Raises:
        SourceError: nothing in the folder can become a pair.
    """

    def __init__(self, folder: str, part: str | None = None) -> None:
        self.name = folder
        self.part = part if part is not None else os.path.basename(os.path.abspath(folder))
        self._pairing = Pairing(folder)
        self.size = self._pairing.size
        self.position = 0
        self.collisions = self._pairing.collisions
        self.ignored = self._pairing.ignored
        self.mapping: dict[str, str] = {}
        self.ended: list[tuple[str, int]] = []

    def skip_parts(self, done: Collection[tuple[str, int]]) -> None:
        """There are none: files may have been added."""

    def __iter__(self) -> Iterator[Sample | Rejected]:
        for rejected in self._pairing.rejected():
            yield self._named(rejected)
        for pair in self._pairing.pairs():
            self.position += 1
            item = self._read(pair)
            yield self._named(item) if isinstance(item, Rejected) else item

    def _named(self, rejected: Rejected) -> Rejected:
        return rejected._replace(key=f"{self.part}: {rejected.key}")

    def _read(self, pair: Pair) -> Sample | Rejected:
        image, text = (read_file(os.path.join(self.name, path)) for path in pair)
        if isinstance(image, str):
            return Rejected(pair.image, image)
        if isinstance(text, str):
            return Rejected(pair.captions, text)
        captions = parse_captions(text)
        if not captions:
            return Rejected(pair.image, f"caption is empty: {pair.captions}")
        return Sample(pair.image, image, captions, {})


class FolderSource:
    """The pairs of a folder, read straight from its files (a `RowSource`).

    Captions are read on opening, images when asked for; neither is checked further. `rejected` and `collisions` name
    the files that made no pair.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.path.expanduser(os.fspath(folder)))
        listing = list_pairs(self.path)
        self.rejected = listing.rejected
        self.collisions = listing.collisions
        self.columns = {"key": "text", "image": "bytes", "text": "text", "captions": "text"}
        self._images: list[str] = []
        self._captions: list[tuple[str, ...]] = []
        digest = hashlib.sha256()
        for pair in listing.pairs:
            text = read_file(os.path.join(self.path, pair.captions))
            captions = parse_captions(text) if isinstance(text, bytes) else ()
            size = _size(os.path.join(self.path, pair.image))
            if not captions or not size:
                why = text if isinstance(text, str) else "caption is empty" if not captions else "empty file"
                self.rejected.append(Rejected(pair.image, why))
                continue
            self._images.append(pair.image)
            self._captions.append(captions)
            digest.update(f"{pair.image}\0{size}\0{pair.captions}\0{len(text)}\n".encode("utf-8", "surrogateescape"))
        self.version = f"folder@{digest.hexdigest()[:16]}"
        if not self._images:
            raise SourceError(
                f"no image in {self.path} has captions",
                found=f"{len(listing.pairs):,} pairs, all of them empty files",
            )

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"FolderSource({self.path!r}, rows={len(self)})"

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[Row]:
        """The pairs at these indices, in this order.

        Raises:
            SourceError: a file has gone or cannot be read.
        """
        return [Row(int(index), self._image(int(index)), self._captions[int(index)]) for index in indices]

    def column(self, name: str) -> list[object]:
        """One column: "key" (the image's path), "image", "text" or "captions"."""
        return [self._value(index, name) for index in range(len(self))]

    def __getitem__(self, index: int) -> dict[str, object]:
        index = range(len(self))[index]
        return {name: self._value(index, name) for name in self.columns}

    def _value(self, index: int, name: str) -> object:
        if name == "key":
            return self._images[index]
        if name == "image":
            return self._image(index)
        if name in ("text", "captions"):
            return self._captions[index][0] if name == "text" else list(self._captions[index])
        raise SourceError(f"a folder has no column {name!r}", found=", ".join(self.columns))

    def _image(self, index: int) -> bytes:
        if index < 0:
            raise IndexError(index)
        path = os.path.join(self.path, self._images[index])
        data = read_file(path)
        if isinstance(data, str):
            raise SourceError(f"{path} could be read when the folder was opened, and cannot be now", found=data)
        return data


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def open_folder(folder: str | os.PathLike[str]) -> FolderSource:
    """Open a folder of pairs for reading, without a lake.

    Raises:
        SourceError: nothing in it can become a pair.
    """
    return FolderSource(folder)
