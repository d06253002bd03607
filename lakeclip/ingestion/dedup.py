"""Deduplication against the rows of a lake: an interrupted ingest resumes, and a repeated one stores what is new.

A sample is compared with the rows that its source has in the lake, and then with all others:

1. A row with its key, image, captions and metadata is the same row. So is one with another key, whose image is compared
   byte for byte: tables number their rows, and a new export numbers them anew.
2. A row with its image (or the address of its image) and other captions or metadata holds an earlier version.
3. So does a row with its key and another image, if keys are names; a row number is not a name.
4. So is a row with the same image, captions and metadata that was read from a path at which nothing is left.
5. Otherwise the sample is new: the same image with the same caption in two folders is two rows.

A source is known by its whole path. A path that the lake does not know belongs to a source that was moved if at least
half of its first samples are in the lake, and nothing is left at that source's old path.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lakeclip.ingestion.limits import unstorable_reason
from lakeclip.ingestion.row_index import Contents, RowIndex, has_address, read_values
from lakeclip.ingestion.sources.base import Sample, Source, SourceWrapper
from lakeclip.ingestion.state import PartNames, whole_paths
from lakeclip.lake.columns import type_names
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.query import count_values, quote
from lakeclip.lake.schema import SOURCE
from lakeclip.lake.values import clean_text

#: What to do with a sample of which the lake holds an earlier version: store it in that row, keep the row as it is, or
#: add a row.
OnChange: TypeAlias = Literal["update", "keep", "add"]
#: Number of samples that decide whether a source was moved.
_FIRST_SAMPLES = 64
#: Limits on the changed samples that are in memory before their rows are chosen.
_MAX_DEFERRED = 2_000
_MAX_DEFERRED_BYTES = 32 * 2**20
_BLOCK = 20_000


class ExistingRows:
    """Rows that a lake held before an ingest.

    Args:
        dataset: the lake; None if there is none yet.
        paths: part → whole path of the parts that it knows.
        rows_before: number of rows before the ingest that is being resumed, if one is: rows that it has written itself
            do not make samples of other sources redundant.

    Attributes:
        names: names of the parts.
    """

    def __init__(
        self,
        dataset: Any = None,
        paths: Mapping[str, str] | None = None,
        rows_before: int | None = None,
    ) -> None:
        self._dataset = dataset
        self._contents = Contents(dataset, type_names(dataset) if dataset is not None else {})
        num_rows = len(dataset) if dataset is not None else 0
        self._rows_before = num_rows if rows_before is None else min(rows_before, num_rows)
        self._num_rows = Counter(count_values(dataset, SOURCE) if num_rows else {})
        self.names = PartNames(paths or {}, self._num_rows)
        self._part: tuple[str, RowIndex] | None = None
        self._others: tuple[RowIndex, NDArray[np.uint32], list[str]] | None = None
        self._claimed: set[str] = set()
        self._gone: dict[str, bool] = {}

    def has_rows(self, part: str) -> bool:
        """Return whether a part has rows."""
        return bool(self._num_rows[part])

    def index(self, part: str) -> RowIndex:
        """Return the index of a part's rows; the index of the last part is kept."""
        if self._part is None or self._part[0] != part:
            self._part = None  # two of them need not be in memory
            clause = f"{SOURCE} == {quote(part)}"
            if self.has_rows(part):
                view = self._dataset.query(f"select row from (select row_number() as row, *) where {clause}")  # noqa: S608
                rows = np.asarray(view["row"][:], np.int64).reshape(-1)
            else:
                rows = np.empty(0, np.int64)
            self._part = (part, RowIndex(self._dataset, self._contents, rows))
        return self._part[1]

    def hash_sample(self, sample: Sample) -> np.uint64 | None:
        """Return the hash of a sample's captions and metadata."""
        return self._contents.hash_sample(sample)

    def claim(self, part: str) -> None:
        """Let no other source of this ingest be taken for this part."""
        self._claimed.add(part)

    def count_gone(self, folders: Collection[str]) -> int:
        """Return the number of rows that were read from files of these folders, and are in no file any longer.

        Call it once all sources have been read: their rows may be in any of them now.
        """
        prefixes = tuple(os.path.join(os.path.abspath(folder), "") for folder in folders)
        gone = {
            name
            for name, path in self.names.paths.items()
            if path.startswith(prefixes) and self._may_have_moved(name) and self.has_rows(name)
        }
        if not gone or self._others is None:
            return sum(self._num_rows[name] for name in gone)
        index, part_numbers, parts = self._others
        numbers = [number for number, part in enumerate(parts) if part in gone]
        return int((np.isin(part_numbers, numbers) & ~index.is_matched).sum())

    def find_moved(self, preferred: str, samples: list[Sample]) -> str | None:
        """Return the part that these samples, the first ones of an unknown path, were read from earlier; or None."""
        if not samples or not self._num_rows:
            return None
        if self.has_rows(preferred) and self._may_have_moved(preferred):
            index = self.index(preferred)
            if 2 * sum(self._is_version(index, sample) for sample in samples) >= len(samples):
                return preferred
        votes: Counter[str] = Counter()
        for sample in samples:
            votes.update(set(self._parts_holding(sample)))
        for part, count in votes.most_common():
            if 2 * count >= len(samples) and self._may_have_moved(part):
                return part
        return None

    def take_elsewhere(self, sample: Sample, part: str) -> str | None:
        """Return a part that holds a sample and whose path is gone, and match its row; None if there is none."""
        if not self._rows_before or not (sample.image or has_address(sample)):
            return None
        index, part_numbers, parts = self._load_others()
        entries = index.with_content(self.hash_sample(sample))
        numbers = part_numbers[entries].tolist()
        is_other = np.array([parts[number] != part and self._may_have_moved(parts[number]) for number in numbers], bool)
        entries = entries[is_other]
        if not len(entries):
            return None
        entry = index.first_equal(entries, sample.image) if sample.image else int(entries[0])
        if entry is None:
            return None
        index.is_matched[entry] = True
        return parts[int(part_numbers[entry])]

    def _may_have_moved(self, part: str) -> bool:
        if part not in self._gone:
            self._gone[part] = self.names.is_gone(part)
        return self._gone[part] and part not in self._claimed

    def _is_version(self, index: RowIndex, sample: Sample) -> bool:
        entries = index.with_key(sample.key)
        if sample.image:
            return bool((index.crc32_of(entries) == np.uint32(zlib.crc32(sample.image))).any())
        content = self.hash_sample(sample)
        return any(index.has_content(int(entry), sample, content) for entry in entries[:1])

    def _parts_holding(self, sample: Sample) -> Iterator[str]:
        index, part_numbers, parts = self._load_others()
        entries = index.with_content(self.hash_sample(sample))
        if sample.image:
            entries = entries[index.crc32_of(entries) == np.uint32(zlib.crc32(sample.image))]
        elif not has_address(sample):
            return
        for number in np.unique(part_numbers[entries]).tolist():
            yield parts[number]

    def _load_others(self) -> tuple[RowIndex, NDArray[np.uint32], list[str]]:
        if self._others is None:
            rows = np.arange(self._rows_before)
            numbers: dict[str, int] = {}
            part_numbers = np.empty(len(rows), np.uint32)
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                names = read_values(self._dataset, SOURCE, block)
                part_numbers[start : start + len(block)] = [
                    numbers.setdefault(name or "", len(numbers)) for name in names
                ]
            self._others = (RowIndex(self._dataset, self._contents, rows), part_numbers, list(numbers))
        return self._others


class _Deferred(NamedTuple):
    """A sample whose row is chosen once the exact matches of its part are known.

    Attributes:
        content: hash of its captions and metadata.
        position: position of its source.
    """

    sample: Sample
    content: np.uint64 | None
    position: int


class DeduplicatedSource(SourceWrapper):
    """The samples of a source that a lake does not hold yet, or holds in an earlier version (a `Source`).

    A sample whose row gets another image is yielded with `Sample.replaces`. If only its captions or metadata differ,
    it is passed to `update`, and not yielded.

    Args:
        source: the source to read.
        existing: rows of the lake.
        on_change: what to do with samples of which the lake holds an earlier version.
        update: function that stores the captions and metadata of a sample in a row.
        reads_all: whether the source yields all that it has; False with a query.

    Attributes:
        num_samples: number of samples that the source yielded.
        source_reasons: kind of reason → number of items that the source itself could not use.
        num_known: number of samples that were skipped because the lake holds them.
        num_elsewhere: number of these that were read from another path, at which nothing is left.
        num_updated: number of samples that were passed to `update`.
        num_removed: number of rows of this source that it does not contain any longer, except those of whole files.
        moved: old → new path of the sources that were moved.
    """

    def __init__(
        self,
        source: Source,
        existing: ExistingRows,
        on_change: OnChange = "update",
        update: Callable[[int, Sample], None] | None = None,
        *,
        reads_all: bool = True,
    ) -> None:
        super().__init__(source)
        self._existing = existing
        self._on_change = on_change
        self._update = update
        self._reads_all = reads_all
        self._has_names = not getattr(source, "keys_are_numbers", False)
        self._paths = whole_paths(source)
        self._known_paths = {path for path in self._paths.values() if existing.names.is_known(path)}
        self._names: dict[str, str] = {
            part: existing.names.name_for(clean_text(part), path) for part, path in self._paths.items()
        }
        self._part = ""
        self._position = 0
        self._ended: set[str] = set()
        self._deferred: list[_Deferred] = []
        self._deferred_bytes = 0
        self.num_samples = 0
        self.source_reasons: Counter[str] = Counter()
        self.num_known = 0
        self.num_elsewhere = 0
        self.num_updated = 0
        self.num_removed = 0
        self.moved: dict[str, str] = {}
        for name in self._names.values():
            existing.claim(name)

    @property
    def part(self) -> str:
        """Part of the sample that was yielded last, by its name in the lake."""
        return self._part

    @property
    def position(self) -> int:
        """Position of the sample that was yielded last."""
        return self._position

    @property
    def completed(self) -> list[tuple[str, int]]:
        """Parts that have been read to the end, by their names in the lake, with their fingerprints."""
        return [(self._name_of(part), fingerprint) for part, fingerprint in self._source.completed]

    def skip_parts(self, completed: Collection[tuple[str, int]]) -> None:
        """Skip parts (name in the lake, fingerprint) that are still at the path that they were read from."""
        known = set(completed)
        own = {name: part for part, name in self._names.items() if self._paths.get(part) in self._known_paths}
        self._source.skip_parts([(own[name], fingerprint) for name, fingerprint in known if name in own])

    def __iter__(self) -> Iterator[Sample | Rejected]:
        waiting: deque[tuple[Sample | Rejected, int]] = deque()
        num_waiting = 0
        part: str | None = None
        is_decided = False
        is_whole = True
        for item in self._source:
            if part is None or self._source.part != part:
                if part is not None:
                    yield from self._begin(part, waiting, is_decided=is_decided)
                    yield from self._end(is_whole=is_whole)
                part, is_decided, is_whole, num_waiting = self._source.part, False, True, 0
                self._part = self._name_of(part)
            if isinstance(item, Rejected):
                self.source_reasons[item.reason.partition(":")[0]] += 1
                is_whole = is_whole and not item.reason.startswith("broken ")
            else:
                self.num_samples += 1
            waiting.append((item, self._source.position))
            num_waiting += len(item.image) if isinstance(item, Sample) else 0
            if is_decided or len(waiting) >= _FIRST_SAMPLES or num_waiting > _MAX_DEFERRED_BYTES:
                yield from self._begin(part, waiting, is_decided=is_decided)
                is_decided = True
        if part is not None:
            yield from self._begin(part, waiting, is_decided=is_decided)
            yield from self._end(is_whole=is_whole)
        for name, _ in self.completed:
            if name not in self._ended and self._reads_all:  # a table without rows
                self._part = name
                yield from self._end(is_whole=True)
        self._position = self._source.position

    def _name_of(self, part: str) -> str:
        if part not in self._names:
            path = self._paths.get(part) or f"{self._source.name} {part}".strip()
            self._names[part] = self._existing.names.name_for(clean_text(part), path)
            self._existing.claim(self._names[part])
        return self._names[part]

    def _begin(
        self, part: str, waiting: deque[tuple[Sample | Rejected, int]], *, is_decided: bool
    ) -> Iterator[Sample | Rejected]:
        """Yield what becomes of the items that wait; first decide which rows of the lake are those of their part."""
        if not is_decided:
            self._recognize(part, [item for item, _ in waiting if isinstance(item, Sample)])
        while waiting:
            item, self._position = waiting.popleft()
            if isinstance(item, Rejected):
                yield item
            else:
                yield from self._match(item)

    def _recognize(self, part: str, samples: list[Sample]) -> None:
        name = self._name_of(part)
        if self._existing.has_rows(name):
            return
        preferred = clean_text(part)
        if (earlier := self._existing.find_moved(preferred, samples)) is not None:
            path = self._existing.names.paths[name]
            if (old := self._existing.names.paths.get(earlier)) is not None:
                self.moved[old] = path
            self._existing.names.assign(earlier, path)
            self._existing.claim(earlier)
            self._names[part] = self._part = earlier

    def _match(self, sample: Sample) -> Iterator[Sample | Rejected]:
        """Yield a sample that is new; skip one that the lake holds; defer one that may be another version of a row."""
        if not self._existing.has_rows(self._part):
            yield from self._new(sample)
            return
        index = self._existing.index(self._part)
        content = self._existing.hash_sample(sample)
        entries = index.with_key(sample.key)
        for entry in self._with_same_image(index, entries, sample).tolist():
            if index.has_content(entry, sample, content):
                index.is_matched[entry] = True
                self.num_known += 1
                return
        if len(entries) or len(index.with_content(content)) or len(self._with_image(index, sample)):
            self._deferred.append(_Deferred(sample, content, self._position))
            self._deferred_bytes += len(sample.image)
            if len(self._deferred) >= _MAX_DEFERRED or self._deferred_bytes > _MAX_DEFERRED_BYTES:
                yield from self._decide(index)
        else:
            yield from self._new(sample)

    def _end(self, *, is_whole: bool) -> Iterator[Sample | Rejected]:
        self._ended.add(self._part)
        if not self._existing.has_rows(self._part):
            return
        index = self._existing.index(self._part)
        yield from self._decide(index)
        if is_whole and self._reads_all:
            self.num_removed += int((~index.is_matched).sum())

    def _decide(self, index: RowIndex) -> Iterator[Sample | Rejected]:
        """Choose the rows of the deferred samples: the best matches of all of them first."""
        remaining, self._deferred, self._deferred_bytes = self._deferred, [], 0
        for choose in (self._same_content, self._same_image, self._same_name):
            undecided: list[_Deferred] = []
            for deferred in remaining:
                self._position = deferred.position
                entry = choose(index, deferred)
                if entry is None:
                    undecided.append(deferred)
                    continue
                index.is_matched[entry] = True
                if choose == self._same_content:
                    self.num_known += 1
                else:
                    yield from self._changed(index.row(entry), deferred.sample, image=choose == self._same_name)
            remaining = undecided
        for deferred in remaining:
            self._position = deferred.position
            yield from self._new(deferred.sample)

    def _same_content(self, index: RowIndex, deferred: _Deferred) -> int | None:
        sample = deferred.sample
        entries = index.with_content(deferred.content)
        if sample.image:
            return index.first_equal(entries, sample.image)
        return int(entries[0]) if len(entries) and has_address(sample) else None

    def _same_image(self, index: RowIndex, deferred: _Deferred) -> int | None:
        sample = deferred.sample
        same_key = index.with_key(sample.key)
        if sample.image:
            entries = self._with_same_image(index, same_key, sample)
            return int(entries[0]) if len(entries) else index.first_equal(self._with_image(index, sample), sample.image)
        if not has_address(sample):  # nothing but the name of the sample says which image it is
            return int(same_key[0]) if len(same_key) and self._has_names else None
        entries = self._with_image(index, sample)
        return next((int(entry) for entry in (*np.intersect1d(entries, same_key), *entries)), None)

    def _same_name(self, index: RowIndex, deferred: _Deferred) -> int | None:
        entries = index.with_key(deferred.sample.key)
        return int(entries[0]) if len(entries) and self._has_names else None

    @staticmethod
    def _with_same_image(index: RowIndex, entries: NDArray[np.uint32], sample: Sample) -> NDArray[np.uint32]:
        """Return the entries, which have the sample's key, that also have its image."""
        if not sample.image:  # an address may give another image each time
            return entries
        crc32 = index.crc32_of(entries)
        # A row whose download was no image has none, and the checksum 0.
        is_same: NDArray[np.bool_] = crc32 == np.uint32(zlib.crc32(sample.image))
        if sample.url:
            is_same |= crc32 == 0
        return entries[is_same]

    @staticmethod
    def _with_image(index: RowIndex, sample: Sample) -> NDArray[np.uint32]:
        return index.with_image(zlib.crc32(sample.image)) if sample.image else index.with_address(sample)

    def _changed(self, row: int, sample: Sample, *, image: bool) -> Iterator[Sample | Rejected]:
        if self._on_change == "keep":
            yield Rejected(sample.key, "changed since it was ingested: the lake keeps the old row")
        elif self._on_change == "add":
            yield sample
        elif image or self._update is None:
            yield sample._replace(replaces=row)
        elif reason := unstorable_reason(sample, ImageInfo("", 0, 0), self._part):
            yield Rejected(sample.key[:300], reason)
        else:
            self.num_updated += 1
            self._update(row, sample)

    def _new(self, sample: Sample) -> Iterator[Sample]:
        if self._existing.take_elsewhere(sample, self._part) is None:
            yield sample
        else:
            self.num_known += 1
            self.num_elsewhere += 1
