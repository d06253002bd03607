"""Index of rows of a lake, to find those that hold a certain sample."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lakeclip.ingestion.limits import storable_captions
from lakeclip.ingestion.metadata_columns import MetadataColumns
from lakeclip.ingestion.sources.base import Sample
from lakeclip.lake.schema import UNUSABLE, Kind, convert, dump_captions, kind_of
from lakeclip.lake.values import clean_text

#: Number of rows that are read at once.
_BLOCK = 20_000
#: Number of rows whose images are read at once to compare them.
_IMAGE_BLOCK = 16
#: Limit on the rows of equal hashes that are compared with a sample.
_MAX_COMPARED = 8


class Contents:
    """Captions and metadata of rows and samples, in a form in which they can be compared.

    Args:
        dataset: the lake.
        types: its columns, name → type.
    """

    def __init__(self, dataset: Any, types: Mapping[str, str]) -> None:
        self._dataset = dataset
        self._columns = MetadataColumns(dataset, types)
        # Why an image is missing is not part of what its source contains.
        self._kinds = {name: kind for name, kind in sorted(self._columns.kinds.items()) if name != UNUSABLE}

    def hash_rows(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return a hash of each of these rows, which increase."""
        columns = [["" if text is None else text for text in read_values(self._dataset, "captions", rows)]]
        columns += [list(map(repr, self._values(name, rows))) for name in self._kinds]
        return np.array([_hash_texts(texts) for texts in zip(*columns, strict=True)], np.uint64)

    def hash_sample(self, sample: Sample) -> np.uint64 | None:
        """Return the same hash of a sample; None if no row can hold it, because a column would have to change."""
        values: dict[str, object] = {**self._columns.plain_values(sample.metadata)}
        texts = [_captions(sample)]
        for name, kind in self._kinds.items():
            value = values.pop(name, None)
            if value is not None and kind_of([value], kind) is not kind:
                return None
            texts.append(repr(convert(value, kind)))
        if any(value is not None for value in values.values()) and not self._columns.is_full:
            return None
        return np.uint64(_hash_texts(texts))

    def is_equal(self, row: int, sample: Sample) -> bool:
        """Return whether a row holds the captions and the metadata of a sample; it may hold further columns."""
        numbers = np.array([row])
        if (read_values(self._dataset, "captions", numbers)[0] or "") != _captions(sample):
            return False
        for name, value in self._columns.plain_values(sample.metadata).items():
            if name not in self._kinds:
                if value is not None and not self._columns.is_full:
                    return False
                continue
            kind = self._kinds[name]
            if value is not None and kind_of([value], kind) is not kind:
                return False
            if repr(self._values(name, numbers)[0]) != repr(convert(value, kind)):
                return False
        return True

    def address_column(self, sample: Sample) -> str | None:
        """Return the text column with the address of a sample's image; None if it is in none."""
        for name, value in sample.metadata.items():
            if isinstance(value, str) and value.strip() == sample.url:
                column = next(iter(self._columns.plain_values({name: value})))
                return column if self._kinds.get(column) is Kind.TEXT else None
        return None

    def addresses(self, column: str, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return a hash of each row's address of its image."""
        return np.array([hash_text(str(value).strip()) for value in self._values(column, rows)], np.uint64)

    def _values(self, name: str, rows: NDArray[np.int64]) -> list[object]:
        values = read_values(self._dataset, name, rows)
        return ["" if value is None else value for value in values]


class RowIndex:
    """Index of rows by key, image and content. It takes 41 bytes a row, as of its creation, and 12 for addresses.

    Each row is matched at most once.

    Args:
        dataset: the lake.
        contents: its captions and metadata.
        rows: numbers of the rows, increasing.
    """

    def __init__(self, dataset: Any, contents: Contents, rows: NDArray[np.int64]) -> None:
        self._dataset = dataset
        self._contents = contents
        self._rows = rows
        self._keys, self._content = np.empty(len(rows), np.uint64), np.empty(len(rows), np.uint64)
        self._crc32 = np.empty(len(rows), np.uint32)
        self.is_matched = np.zeros(len(rows), np.bool_)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            stop = start + len(block)
            self._keys[start:stop] = [hash_text(key or "") for key in read_values(dataset, "key", block)]
            self._crc32[start:stop] = np.asarray(read_values(dataset, "crc32", block), np.int64).astype(np.uint32)
            self._content[start:stop] = contents.hash_rows(block)
        self._by_key, self._by_content, self._by_image = (
            np.argsort(values, kind="stable").astype(np.uint32) for values in (self._keys, self._content, self._crc32)
        )
        self._images: tuple[int, list[bytes]] = (0, [])
        self._addresses: dict[str, tuple[NDArray[np.uint64], NDArray[np.uint32]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, entry: int) -> int:
        """Return the row number of an entry."""
        return int(self._rows[entry])

    def with_key(self, key: str) -> NDArray[np.uint32]:
        """Return the unmatched entries of a key."""
        return self._find(self._keys, self._by_key, np.uint64(hash_text(clean_text(key))))

    def with_content(self, content: np.uint64 | None) -> NDArray[np.uint32]:
        """Return the unmatched entries with certain captions and metadata."""
        return self._find(self._content, self._by_content, content) if content is not None else _NONE

    def with_image(self, crc32: int) -> NDArray[np.uint32]:
        """Return the unmatched entries whose images have a checksum."""
        return self._find(self._crc32, self._by_image, np.uint32(crc32))

    def with_address(self, sample: Sample) -> NDArray[np.uint32]:
        """Return the unmatched entries whose images have the address of a sample's image."""
        column = self._contents.address_column(sample)
        if column is None:
            return _NONE
        if column not in self._addresses:
            hashes = np.empty(len(self._rows), np.uint64)
            for start in range(0, len(self._rows), _BLOCK):
                block = self._rows[start : start + _BLOCK]
                hashes[start : start + len(block)] = self._contents.addresses(column, block)
            self._addresses = {column: (hashes, np.argsort(hashes, kind="stable").astype(np.uint32))}
        return self._find(*self._addresses[column], np.uint64(hash_text(sample.url)))

    def crc32_of(self, entries: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return the checksums of the images of entries."""
        return self._crc32[entries]

    def has_content(self, entry: int, sample: Sample, content: np.uint64 | None) -> bool:
        """Return whether an entry holds the captions and metadata of a sample, whose hash is `content`."""
        return bool(self._content[entry] == content) or self._contents.is_equal(self.row(entry), sample)

    def first_equal(self, entries: NDArray[np.uint32], image: bytes) -> int | None:
        """Return the first entry with this image, byte for byte."""
        crc32 = np.uint32(zlib.crc32(image))
        for entry in entries[self._crc32[entries] == crc32][:_MAX_COMPARED].tolist():
            if self._image(self.row(entry)) == image:
                return int(entry)
        return None

    def _image(self, row: int) -> bytes:
        start, images = self._images
        if not start <= row < start + len(images):
            start = row
            images = [image or b"" for image in self._dataset["image"][row : row + _IMAGE_BLOCK]]
            self._images = (start, images)
        return bytes(images[row - start])

    def _find(self, values: NDArray[Any], order: NDArray[np.uint32], value: Any) -> NDArray[np.uint32]:
        first = np.searchsorted(values, value, "left", sorter=order)
        stop = np.searchsorted(values, value, "right", sorter=order)
        entries = order[first:stop]
        return entries[~self.is_matched[entries]]


_NONE = np.empty(0, np.uint32)


def _captions(sample: Sample) -> str:
    return dump_captions(storable_captions(sample, Counter()))


def has_address(sample: Sample) -> bool:
    """Return whether the address of a sample's image is part of its metadata."""
    return any(isinstance(value, str) and value.strip() == sample.url for value in sample.metadata.values())


def hash_text(text: str) -> int:
    """Return a hash of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _hash_texts(texts: Sequence[str]) -> int:
    return hash_text("\0".join(texts))


def read_values(dataset: Any, column: str, rows: NDArray[np.int64]) -> list[Any]:
    """Return the values of increasing rows. Rows that are close together are read as a slice, which is faster."""
    if not len(rows):
        return []
    first, stop = int(rows[0]), int(rows[-1]) + 1
    if stop - first <= 2 * len(rows):
        values = dataset[column][first:stop]
        values = values if isinstance(values, list) else values.tolist()
        return [values[offset] for offset in (rows - first).tolist()]
    values = dataset[column][rows.tolist()]
    return list(values if isinstance(values, list) else values.tolist())
