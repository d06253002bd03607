"""Merge rows of a table that follow one another and name the same image into one row with several captions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lakeclip.ingestion.sources.record import Record

#: Columns that number the captions of an image, or the lines.
_NUMBERS = re.compile(r"((comment|caption|sentence|sent|text)[ _]?(number|num|no|id|index|idx)?|unnamed: ?\d+|index|)")


def is_list_of_captions(columns: Iterable[str], path: str, caption: str) -> bool:
    """Return whether a table holds nothing but file names of images, captions, and their numbers."""
    others = [name for name in columns if name not in (path, caption)]
    return bool(path and caption) and all(_NUMBERS.fullmatch(name.strip().lower()) for name in others)


def has_repeated_images(rows: Sequence[Mapping[str, object]], path: str) -> bool:
    """Return whether rows that follow one another name the same image."""
    names = [row.get(path) for row in rows]
    return any(name is not None and name == other for name, other in itertools.pairwise(names))


class SameImageMerger:
    """Merger of the rows of one table. Its key is that of the first row.

    Args:
        path: column with the file names of images.
        caption: column with the captions.

    Attributes:
        path: see above.
        caption: see above.
        num_merged: number of rows that became part of the row before.
        num_apart: number of rows of an image that rows further up name, too.
    """

    def __init__(self, path: str, caption: str) -> None:
        self.path = path
        self.caption = caption
        self.num_merged = 0
        self.num_apart = 0
        self._seen: set[int] = set()  # hashes of names

    def merge(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the rows, with a list of captions if there are several of one image."""
        first: Record | None = None
        captions: list[object] = []
        num_rows = 0
        for record in records:
            if first is not None and self._name(record) is not None and self._name(record) == self._name(first):
                assert isinstance(record.values, dict), "it has a name"
                captions.append(record.values.get(self.caption))
                num_rows += record.num_rows
                self.num_merged += 1
                continue
            if first is not None:
                yield self._combine(first, captions, num_rows)
            if (name := self._name(record)) is not None:
                self.num_apart += hash(name) in self._seen
                self._seen.add(hash(name))
            first, num_rows = record, record.num_rows
            captions = [record.values.get(self.caption)] if isinstance(record.values, dict) else []
        if first is not None:
            yield self._combine(first, captions, num_rows)

    def notes(self) -> list[str]:
        """Describe what was merged."""
        notes = []
        if self.num_merged:
            notes.append(
                f"{self.num_merged:,} rows that name the image of the row before them are its further captions"
            )
        if self.num_apart:
            notes.append(
                f"{self.num_apart:,} rows name an image that rows further up name, and are rows of their own; "
                f"sort the table by {self.path} to make them captions of one row"
            )
        return notes

    def _name(self, record: Record) -> str | None:
        name = record.values.get(self.path) if isinstance(record.values, dict) else None
        return str(name) if name is not None else None

    def _combine(self, first: Record, captions: list[object], num_rows: int) -> Record:
        if len(captions) < 2 or not isinstance(first.values, dict):
            return first
        return first._replace(values={**first.values, self.caption: captions}, num_rows=num_rows)
