"""A folder of image-caption pairs, read directly from its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence

from lakeclip.errors import SourceError
from lakeclip.lake.columns import CAPTION_NAMES, match_name
from lakeclip.lake.encodings import TextDecoder
from lakeclip.lake.folder.captions import decode_text, parse_captions
from lakeclip.lake.folder.pairing import list_pairs
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.folder.stems import JSON_SUFFIX, Pair
from lakeclip.lake.images import MAX_FILE_BYTES
from lakeclip.lake.rows import Indices, Row, RowSource

#: Limit on the caption files from which their encoding is detected.
_SAMPLE_FILES = 5_000


def read_file(path: str) -> bytes | str:
    """Return a file's bytes, or the reason why it cannot be read."""
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


class FolderSource(RowSource):
    """The pairs of a folder, read directly from its files.

    Captions are read when the folder is opened, images on demand; neither is validated. `rejected` and `collisions`
    list the files that are in no pair, and `notes` says how the captions were decoded.
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
        decoder = TextDecoder()
        for pair in listing.pairs:
            text = read_file(os.path.join(self.path, pair.captions))
            if isinstance(text, bytes):
                decoder.prepare(text, lambda: _texts(self.path, listing.pairs[:_SAMPLE_FILES]))
            captions = _captions(pair.captions, text, decoder) if isinstance(text, bytes) else ()
            size = _size(os.path.join(self.path, pair.image))
            if not captions or not size:
                why = text if isinstance(text, str) else "caption is empty" if not captions else "empty file"
                self.rejected.append(Rejected(pair.image, why))
                continue
            self._images.append(pair.image)
            self._captions.append(captions)
            digest.update(f"{pair.image}\0{size}\0{pair.captions}\0{len(text)}\n".encode("utf-8", "surrogateescape"))
        self.notes = decoder.notes("caption files")
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

    def read(self, indices: Indices, *, with_captions: bool = True) -> list[Row]:
        """Return the pairs at these indices, in this order.

        Raises:
            SourceError: a file is gone or cannot be read.
        """
        return [Row(i, self._image(i), self._captions[i] if with_captions else ()) for i in map(int, indices)]

    def column(self, name: str) -> list[object]:
        """Return one column: "key" (the image's path), "image", "text" or "captions"."""
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
            raise SourceError(f"{path} can no longer be read", found=data)
        return data


def _texts(folder: str, pairs: Sequence[Pair]) -> Iterator[bytes]:
    """Yield the content of caption files."""
    for pair in pairs:
        data = read_file(os.path.join(folder, pair.captions))
        if isinstance(data, bytes):
            yield data


def _captions(path: str, data: bytes, decoder: TextDecoder) -> tuple[str, ...]:
    """Return the captions in a caption file: lines of a text, or what a JSON file holds under a known name."""
    if not path.lower().endswith(JSON_SUFFIX):
        return parse_captions(data, decoder)
    try:
        content = json.loads(decode_text(data, decoder))
    except (ValueError, RecursionError):
        return ()
    if isinstance(content, dict):
        content = content.get(match_name(content, CAPTION_NAMES) or "")
    texts = content if isinstance(content, list) else [content]
    return tuple(text for item in texts if isinstance(item, str) and (text := item.strip()))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def open_folder(folder: str | os.PathLike[str]) -> FolderSource:
    """Open a folder of image-caption pairs for reading, without a lake.

    Raises:
        SourceError: it contains no pairs.
    """
    return FolderSource(folder)
