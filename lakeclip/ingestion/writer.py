"""`LakeWriter`: large appends, few commits, columns that follow the metadata, and checks for a full disk.

Appended rows, and the columns that they add, become visible with their commit or not at all: a process that is killed
leaves the lake in the state of its last commit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from filelock import FileLock

from lakeclip.errors import LakeError, OutputError, SourceError
from lakeclip.ingestion.limits import storable_captions, unstorable_reason
from lakeclip.ingestion.metadata_columns import MetadataColumns
from lakeclip.ingestion.sources.base import Sample, Source
from lakeclip.ingestion.state import IngestState, base_names, commit_message, read_state, write_state
from lakeclip.ingestion.target import LOCK, acquire_lock
from lakeclip.lake import commit_log, engine
from lakeclip.lake.columns import list_columns, type_names
from lakeclip.lake.images import ImageInfo
from lakeclip.lake.schema import COLUMNS, SOURCE, UNUSABLE, convert, dump_captions
from lakeclip.lake.values import Plain, clean_text, plain_value

#: Every append and every commit creates files: 600 small commits created 2,405.
ROWS_PER_APPEND = 1_000
BYTES_PER_APPEND = 16 * 2**20
ROWS_PER_COMMIT = 10_000
#: Rows are held in memory until their commit.
BYTES_PER_COMMIT = 64 * 2**20
#: Bytes that an append must leave free on the disk, for Deep Lake's log and for other programs.
SPARE_BYTES = 4 * 2**20
#: Share of the time that may be spent on opening the lake after commits. It takes 1 ms, and 24 ms after 300 commits.
_VERIFY_SHARE = 0.02


class _Row(NamedTuple):
    sample: Sample
    info: ImageInfo
    captions: tuple[str, ...]
    metadata: dict[str, Plain]
    part: str


class LakeWriter:
    """Writer that appends samples to a lake. Use it as a context manager, or call `close`.

    Committed rows stay if a later step fails. Values that a lake cannot hold become missing values, which are counted,
    so that every lake that is committed can be opened; the documentation of the limits is docs/reference/values.md.

    Args:
        path: a folder that does not exist or is empty, or a URL; with `existing`, a lake that lakeclip wrote.
        existing: whether to append to an existing lake.

    Attributes:
        rows: number of committed rows.
        changed: number of values that are not stored as they were given, by column and reason.
        renamed: name of metadata → column, where the two differ.
        paths: part → whole path or address of the sources; stored with the state of the ingest.
        rows_before: number of rows that the lake held when the ingest began that is under way or being resumed.

    Raises:
        LakeError: the lake exists already; with `existing`: it was not written by lakeclip, or another process is
            writing to it.
        OutputError: the path cannot be written.
    """

    def __init__(self, path: str, *, existing: bool = False) -> None:
        self.path = engine.normalize_path(path)
        self.rows = 0
        self.changed: Counter[str] = Counter()
        self._lock: FileLock | None = None
        self._completed: list[tuple[str, int]] = []
        self._buffer: list[_Row] = []
        self._buffer_bytes = 0
        self._pending_rows = 0
        self._pending_bytes = 0
        self._replaced = 0
        self._parts: list[str] = []
        self._checked: set[str] = set()
        self.paths: dict[str, str] = {}
        self.rows_before = 0
        self._dataset = self._open() if existing else self._create()
        self._metadata_columns = MetadataColumns(self._dataset, type_names(self._dataset))
        self._metadata_columns.changed = self.changed
        self.renamed = self._metadata_columns.renamed
        #: The last version that is known to open.
        self._verified = self._dataset.version
        self._verified_at, self._verify_seconds = time.perf_counter(), 0.0

    def __enter__(self) -> LakeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    @property
    def columns(self) -> dict[str, str]:
        """Column → type of the lake."""
        return {
            **COLUMNS,
            SOURCE: "text",
            **{name: kind.type_name for name, kind in self._metadata_columns.kinds.items()},
        }

    def append(self, sample: Sample, info: ImageInfo, part: str = "") -> None:
        """Append a row.

        Args:
            sample: the sample.
            info: properties of its image.
            part: part of the source; the commit message names it.

        Raises:
            OutputError: the disk is full.
            SourceError: the sample cannot be a row (see `limits.unstorable_reason`).
        """
        if reason := unstorable_reason(sample, info, part):
            raise SourceError(
                f"the sample {sample.key[:200]} cannot be stored in the lake at {self.path}",
                found=reason,
                next_step="leave it out",
            )
        part = clean_text(part)
        if part and part not in self._parts:
            self._parts.append(part)
        captions = storable_captions(sample, self.changed)
        metadata = self._metadata_columns.plain_values(sample.metadata)
        if sample.unusable:
            metadata[UNUSABLE] = self._text(sample.unusable, UNUSABLE)
        self._buffer.append(_Row(sample, info, captions, metadata, part))
        texts = [value for value in metadata.values() if isinstance(value, str)]
        self._buffer_bytes += len(sample.image) + sum(map(len, captions)) + sum(map(len, texts))
        if len(self._buffer) >= ROWS_PER_APPEND or self._buffer_bytes >= BYTES_PER_APPEND:
            self._flush()
            if self._pending_rows >= ROWS_PER_COMMIT or self._pending_bytes >= BYTES_PER_COMMIT:
                self.commit()

    def start(self, sources: Sequence[Source]) -> None:
        """Store in the lake that an ingest of these sources has started."""
        self._write_state(sources, complete=False)

    def complete_part(self, part: str, fingerprint: int) -> None:
        """Record with the next commit that a part of a source, with this fingerprint, has been read to the end."""
        self._completed.append((part, fingerprint))

    def replace(self, row: int, image: bytes, info: ImageInfo, unusable: str) -> None:
        """Store the image of a row that had none, or the reason why it still has none.

        Raises:
            OutputError: the disk is full.
        """
        if reason := unstorable_reason(Sample("", image, (), {}), info, ""):
            image, info, unusable = b"", ImageInfo("", 0, 0), reason
        values: dict[str, object] = {UNUSABLE: self._text(unusable, UNUSABLE)}
        if image:
            values |= {"image": image, "crc32": zlib.crc32(image), **info._asdict()}
        try:
            for name, value in values.items():
                self._dataset[name][row] = value
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None
        self._replaced += 1
        self._pending_bytes += len(image)
        if self._replaced >= ROWS_PER_COMMIT or self._pending_bytes >= BYTES_PER_COMMIT:
            self._check_free_space(self._pending_bytes)
            self.commit()

    def update(self, row: int, sample: Sample, info: ImageInfo | None = None) -> None:
        """Store another version of a sample in its row. Columns that its metadata does not name stay as they are.

        Args:
            row: number of the row.
            sample: the sample; see `limits.unstorable_reason`.
            info: properties of its image; None if the row has that image already.

        Raises:
            OutputError: the disk is full.
        """
        self._flush()
        captions = storable_captions(sample, self.changed)
        metadata = self._metadata_columns.plain_values(sample.metadata)
        values: dict[str, object] = {"text": captions[0] if captions else "", "captions": dump_captions(captions)}
        if info is not None:
            values |= {"key": clean_text(sample.key), "image": sample.image, "crc32": zlib.crc32(sample.image)}
            values |= info._asdict()
            if sample.unusable or UNUSABLE in self._metadata_columns.kinds:
                metadata[UNUSABLE] = self._text(sample.unusable, UNUSABLE)
        try:
            self._metadata_columns.adapt([metadata], self.rows + self._pending_rows, all_columns=False)
            kinds = self._metadata_columns.kinds
            values |= {name: convert(value, kinds[name]) for name, value in metadata.items() if name in kinds}
            for name, value in values.items():
                self._dataset[name][row] = value
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None
        self._replaced += 1
        self._pending_bytes += sum(len(value) for value in values.values() if isinstance(value, (str, bytes)))
        if self._replaced >= ROWS_PER_COMMIT or self._pending_bytes >= BYTES_PER_COMMIT:
            self._check_free_space(self._pending_bytes)
            self.commit()

    def commit(self) -> None:
        """Commit all rows so far.

        Raises:
            OutputError: the disk is full.
        """
        self._flush()
        if not self._pending_rows and not self._replaced:
            return  # parts that are complete are recorded with the state
        after = self.rows + self._pending_rows
        if self._pending_rows:
            message = commit_message(self.rows, after, self._parts, self._completed)
        else:
            message = commit_message(0, 0, self._parts, self._completed).replace("no rows", "rows replaced", 1)
        try:
            self._dataset.commit(message)
        except Exception as error:
            raise self._failure(engine.one_line(error), kept=self._undo()) from None
        self._check_written()
        self._verify()
        self.rows = after
        self._pending_rows = self._pending_bytes = self._replaced = 0
        self._parts, self._completed = [], []

    def close(self, sources: Sequence[Source] | None = None) -> None:
        """Commit the remaining rows, and check that the lake can be opened and holds every row.

        Args:
            sources: store in the lake that the ingest of these sources has finished.

        Raises:
            OutputError: the check fails.
        """
        self.commit()
        self._verify(always=True)
        try:
            num_readable = len(engine.open_dataset(self.path))
        except LakeError as error:
            raise self._failure(engine.one_line(error)) from None
        if num_readable != self.rows:
            raise self._failure(f"{num_readable:,} of {self.rows:,} rows can be read")
        if sources is not None:
            self._write_state(sources, complete=True)
        self._unlock()

    def abandon(self) -> None:
        """Discard the rows that have not been committed. Deep Lake would commit them when it closes the dataset."""
        self._buffer = []
        with contextlib.suppress(Exception):  # an error is being handled already, and says more
            self._dataset.rollback()
            # Ctrl-C may have come between a commit and the update of `rows`; and `_undo` does not change the handle.
            self.rows = len(engine.open_dataset(self.path))
        self._unlock()

    def _write_state(self, sources: Sequence[Source], *, complete: bool) -> None:
        state = IngestState(complete, base_names(sources), self.rows_before, self.paths)
        try:
            write_state(self._dataset, state, self._completed)
            self._completed = []
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None

    def _open(self) -> Any:
        self._lock_lake()
        if not engine.is_remote(self.path):
            _drop_empty_counters(self.path)
        try:
            dataset = engine.deeplake().open(self.path, token=engine.get_token())
        except Exception as error:
            raise engine.lake_error(error, self.path) from None
        columns = type_names(dataset)
        if not {**COLUMNS, SOURCE: "text"}.items() <= columns.items():
            raise LakeError(
                f"cannot add rows to the lake at {self.path}, because lakeclip did not create it",
                found=list_columns(columns),
                next_step=f"lakeclip ingest {self.path} NEW_LAKE copies it into a lake that can grow",
            )
        self.rows = self.rows_before = len(dataset)
        if (state := read_state(dataset)) is not None:
            self.paths = dict(state.paths)
            if not state.complete and state.rows_before is not None:
                self.rows_before = state.rows_before
        return dataset

    def _lock_lake(self) -> None:
        self._lock = None if engine.is_remote(self.path) else acquire_lock(self.path)

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.path, LOCK))
            self._lock.release()
            self._lock = None

    def _create(self) -> Any:
        deeplake = engine.deeplake()
        if not engine.is_remote(self.path):
            if "@" in self.path:
                raise OutputError(
                    f"cannot create a lake at {self.path}",
                    found="an @ in the path, which Deep Lake would take for the start of a branch name",
                    next_step="choose another name",
                )
            try:
                os.makedirs(self.path, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot create a lake at {self.path}", found=error.strerror or str(error)) from None
            try:
                self._check_free_space(0)
            except OutputError:
                with contextlib.suppress(OSError):  # the folder existed before and is not empty
                    os.rmdir(self.path)
                raise
            self._lock_lake()
        types = deeplake.types
        constructors = {"text": types.Text, "bytes": types.Bytes, "int64": types.Int64, "int32": types.Int32}
        schema = {name: constructors[kind]() for name, kind in {**COLUMNS, SOURCE: "text"}.items()}
        try:
            return deeplake.create(self.path, schema=schema, token=engine.get_token())
        except deeplake.LogExistsError:
            raise LakeError(f"there is already a lake at {self.path}", next_step="choose another path") from None
        except Exception as error:
            raise OutputError(f"cannot create a lake at {self.path}", found=engine.one_line(error)) from None

    def _flush(self) -> None:
        rows, size = self._buffer, self._buffer_bytes
        if not rows:
            return
        self._check_free_space(self._pending_bytes + size)
        try:
            self._metadata_columns.adapt([row.metadata for row in rows], self.rows + self._pending_rows)
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None
        data: dict[str, list[object]] = {
            "key": [self._text(row.sample.key, "key") for row in rows],
            "image": [row.sample.image for row in rows],
            "format": [row.info.format for row in rows],
            "crc32": [zlib.crc32(row.sample.image) for row in rows],
            "width": [row.info.width for row in rows],
            "height": [row.info.height for row in rows],
            "text": [row.captions[0] if row.captions else "" for row in rows],
            "captions": [dump_captions(row.captions) for row in rows],
            SOURCE: [row.part for row in rows],
        }
        for name, kind in self._metadata_columns.kinds.items():
            data[name] = [convert(row.metadata.get(name), kind) for row in rows]
        try:
            self._dataset.append(data)
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None
        self._buffer, self._buffer_bytes = [], 0
        self._pending_rows += len(rows)
        self._pending_bytes += size

    def _text(self, text: str, column: str) -> str:
        """Return a text as it is stored; count what is changed."""
        problems: Counter[str] = Counter()
        stored = plain_value(text, problems)
        for reason, count in problems.items():
            self.changed[f"column {column}: {reason}"] += count
        return "" if stored is None else str(stored)

    def _verify(self, *, always: bool = False) -> None:
        """Check that the lake can be opened, and go back to the last version that could be opened if it cannot.

        Deep Lake commits some values and then refuses to open the dataset, with all its earlier rows.
        """
        started = time.perf_counter()
        if not always and self._verify_seconds > _VERIFY_SHARE * (started - self._verified_at):
            return  # a later check will find it too
        try:
            version = engine.open_dataset(self.path, check=False).version
        except LakeError as error:
            reason = f"Deep Lake cannot open what it has written: {error.found}"
            raise self._failure(reason, kept=self._undo()) from None
        self._verified = version
        self._verified_at = time.perf_counter()
        self._verify_seconds = self._verified_at - started

    def _undo(self) -> str:
        """Remove the versions after the last one that could be opened, if the lake cannot be opened with them.

        Returns:
            "" if the lake can be opened, otherwise what is wrong with it.
        """
        try:
            dataset = engine.open_dataset(self.path)
        except LakeError:
            if engine.is_remote(self.path):
                return f"{self.path} is damaged and cannot be read"
            with contextlib.suppress(OSError):
                commit_log.remove_versions(self.path, commit_log.version_number(self._verified))
            try:
                dataset = engine.open_dataset(self.path)
            except LakeError:
                return f"{self.path} is damaged and cannot be read"
        self.rows = len(dataset)
        return ""

    def _check_free_space(self, size: int) -> None:
        if engine.is_remote(self.path):
            return
        free = shutil.disk_usage(self.path).free
        if free < size + SPARE_BYTES:
            needed = size + SPARE_BYTES
            shortage = f"{free / 2**20:,.1f} MB free, {needed / 2**20:,.1f} MB needed for the next rows"
            raise self._failure(shortage, full=True)

    def _check_written(self) -> None:
        """Check the sizes of the written files, because Deep Lake does not notice a full disk."""
        if engine.is_remote(self.path):
            return
        for problem in engine.find_damaged_files(self._dataset, self.path, known=self._checked).values():
            # Deleting works on a full disk; Deep Lake's own rollback would have to write.
            raise self._failure(problem, kept=self._undo(), full=True)

    def _failure(self, reason: str, *, kept: str = "", full: bool = False) -> OutputError:
        retry = "run the same command " + ("again with --overwrite" if kept else "to resume")
        kept = kept or (f"{self.path} holds {self.rows:,} rows" if self.rows else "no row has been kept")
        return OutputError(
            f"cannot continue writing to the lake at {self.path}" + (": the disk is full" if full else ""),
            found=f"{reason}; {kept}",
            next_step=f"free some space, then {retry}" if full else retry,
        )


def _drop_empty_counters(path: str) -> None:
    """Repair a lake after a full disk, so that it can be written again.

    Deep Lake stores the number of the next commit in a file. A full disk leaves the file empty, and Deep Lake then
    refuses to write. Without the file, it counts the commits again.
    """
    for counter in engine.local_folder(path).glob("_deeplake_log/*/next_base"):
        if counter.stat().st_size == 0:
            counter.unlink()
