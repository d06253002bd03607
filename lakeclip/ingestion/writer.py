"""Writing a lake: large appends, few commits, columns that grow with the metadata, and a disk that may fill up.

Rows that were appended, and the columns they brought, become visible together with their commit, or never: a process
that is killed leaves the lake as its last commit left it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from lakeclip.errors import LakeclipError, LakeError, OutputError, SourceError
from lakeclip.lake import engine
from lakeclip.lake.columns import list_columns, type_names
from lakeclip.lake.ledger import commit_message, write_state
from lakeclip.lake.schema import (
    COLUMNS,
    MAX_METADATA_COLUMNS,
    MISSING_INT,
    SOURCE,
    UNUSABLE,
    Kind,
    clean_text,
    convert,
    dump_captions,
    kind_of,
    metadata_column,
)
from lakeclip.lake.sources.base import Sample, Source
from lakeclip.lake.sources.images import ImageInfo
from lakeclip.lake.target import LOCK, take_lock

#: Small appends and commits each cost files: 600 tiny commits are 2,405 of them.
ROWS_PER_APPEND = 1_000
BYTES_PER_APPEND = 16 * 2**20
ROWS_PER_COMMIT = 10_000
#: Rows wait in memory for their commit.
BYTES_PER_COMMIT = 64 * 2**20
#: Room that an append must leave on the disk, for Deep Lake's log and everyone else.
SPARE_BYTES = 4 * 2**20

_BLOCK = 100_000


class _Row(NamedTuple):
    sample: Sample
    info: ImageInfo
    metadata: dict[str, object]
    part: str


class LakeWriter:
    """Appends samples to a lake. Use it as a context manager, or call `close`.

    Whatever has been committed stays when something fails; `rows` says how many that is.

    Args:
        path: where the lake will be: a folder that does not exist or is empty, or an address.
        existing: go on with the lake that is there, one that lakeclip made.

    Raises:
        LakeError: there is a lake already, or, with `existing`, none that lakeclip made, or one being written just now.
        OutputError: nothing can be written there.
    """

    def __init__(self, path: str, *, existing: bool = False) -> None:
        self.path = engine.normal_path(path)
        self.rows = 0
        """Rows that have been committed."""
        self._kinds: dict[str, Kind] = {}
        self._lock: int | None = None
        self._whole: list[tuple[str, int]] = []
        self._buffer: list[_Row] = []
        self._buffer_bytes = 0
        self._pending_rows = 0
        self._pending_bytes = 0
        self._replaced = 0
        self._parts: list[str] = []
        self._checked: set[str] = set()
        self._dataset = self._open() if existing else self._create()

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
        """Column names and their types."""
        return {**COLUMNS, SOURCE: "text", **{name: kind.type_name for name, kind in self._kinds.items()}}

    def append(self, sample: Sample, info: ImageInfo, part: str = "") -> None:
        """Add one row.

        Args:
            info: what is known of the sample's image.
            part: which part of the source it is from; commits name theirs.

        Raises:
            OutputError: the disk is full.
            SourceError: the metadata would make a column for each of too many names.
        """
        if part and part not in self._parts:
            self._parts.append(part)
        metadata = {metadata_column(clean_text(str(name))): value for name, value in sample.metadata.items()}
        if sample.unusable:
            metadata[UNUSABLE] = sample.unusable
        self._buffer.append(_Row(sample, info, metadata, part))
        self._buffer_bytes += len(sample.image)
        if len(self._buffer) >= ROWS_PER_APPEND or self._buffer_bytes >= BYTES_PER_APPEND:
            self._flush()
            if self._pending_rows >= ROWS_PER_COMMIT or self._pending_bytes >= BYTES_PER_COMMIT:
                self.commit()

    def begin(self, sources: Sequence[Source]) -> None:
        """Leave word in the lake of what is being read into it."""
        self._note(sources, complete=False)

    def end_part(self, part: str, stamp: int) -> None:
        """Note in the next commit that a part of the source, as it is by its `stamp`, has been read to its end."""
        self._whole.append((part, stamp))

    def replace(self, row: int, image: bytes, info: ImageInfo, unusable: str) -> None:
        """Give a row that had no image one, or another reason for having none.

        Raises:
            OutputError: the disk is full.
        """
        values: dict[str, object] = {UNUSABLE: unusable}
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
            self._require_room(self._pending_bytes)
            self.commit()

    def commit(self) -> None:
        """Make every row so far permanent.

        Raises:
            OutputError: the disk is full.
        """
        self._flush()
        if not self._pending_rows and not self._replaced:
            return
        after = self.rows + self._pending_rows
        if self._pending_rows:
            message = commit_message(self.rows, after, self._parts, self._whole)
        else:
            message = f"{self._replaced} rows replaced"
        try:
            self._dataset.commit(message)
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None
        self._check_written()
        self.rows = after
        self._pending_rows = self._pending_bytes = self._replaced = 0
        self._parts, self._whole = [], []

    def close(self, sources: Sequence[Source] | None = None) -> None:
        """Commit what is left, and see that the lake opens and holds every row.

        Args:
            sources: leave word that all of these have been read.

        Raises:
            OutputError: it does not.
        """
        self.commit()
        try:
            found = len(engine.open_dataset(self.path))
        except LakeError as error:
            raise self._failure(engine.one_line(error)) from None
        if found != self.rows:
            raise self._failure(f"{found:,} of {self.rows:,} rows can be read")
        if sources is not None:
            self._note(sources, complete=True)
        self._unlock()

    def abandon(self) -> None:
        """Give up the rows that have not been committed. Without this, Deep Lake commits them when the handle goes."""
        self._buffer = []
        with contextlib.suppress(Exception):  # there is a better error to report already
            self._dataset.rollback()
            # Ctrl-C may have come between a commit and its being counted.
            self.rows = len(self._dataset)
        self._unlock()

    def _note(self, sources: Sequence[Source], *, complete: bool) -> None:
        try:
            write_state(self._dataset, sources, complete=complete)
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None

    def _open(self) -> Any:
        self._take_lock()
        if not engine.is_remote(self.path):
            _drop_empty_counters(self.path)
        try:
            dataset = engine.deeplake().open(self.path, token=engine.keep_token(None))
        except Exception as error:
            raise engine.explain(error, self.path) from None
        columns = type_names(dataset)
        if not {**COLUMNS, SOURCE: "text"}.items() <= columns.items():
            raise LakeError(
                f"the lake at {self.path} was not made by lakeclip, so nothing is added to it",
                found=list_columns(columns),
                next_step=f"lakeclip ingest {self.path} NEW_LAKE makes one that can grow",
            )
        kinds = {kind.type_name: kind for kind in Kind}
        for name, kind in columns.items():
            if name not in COLUMNS and name != SOURCE and kind in kinds:
                self._kinds[name] = kinds[kind]
        self.rows = len(dataset)
        return dataset

    def _take_lock(self) -> None:
        self._lock = None if engine.is_remote(self.path) else take_lock(self.path)

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.path, LOCK))
            os.close(self._lock)
            self._lock = None

    def _create(self) -> Any:
        deeplake = engine.deeplake()
        if not engine.is_remote(self.path):
            if "@" in self.path:
                raise OutputError(
                    f"a lake cannot be made at {self.path}",
                    found="an @ in the path: Deep Lake reads what follows as the name of a branch",
                    next_step="choose another name",
                )
            try:
                os.makedirs(self.path, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make a lake at {self.path}", found=error.strerror or str(error)) from None
            try:
                self._require_room(0)
            except OutputError:
                with contextlib.suppress(OSError):  # it holds something: not ours
                    os.rmdir(self.path)
                raise
            self._take_lock()
        types = deeplake.types
        makers = {"text": types.Text, "bytes": types.Bytes, "int64": types.Int64, "int32": types.Int32}
        schema = {name: makers[kind]() for name, kind in {**COLUMNS, SOURCE: "text"}.items()}
        try:
            return deeplake.create(self.path, schema=schema, token=engine.keep_token(None))
        except deeplake.LogExistsError:
            raise LakeError(f"there is a lake already at {self.path}", next_step="choose another path") from None
        except Exception as error:
            raise OutputError(f"cannot make a lake at {self.path}", found=engine.one_line(error)) from None

    def _flush(self) -> None:
        rows, size = self._buffer, self._buffer_bytes
        if not rows:
            return
        self._require_room(self._pending_bytes + size)
        try:
            self._fit_columns([row.metadata for row in rows])
        except LakeclipError:
            raise
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None
        data: dict[str, list[object]] = {
            "key": [clean_text(row.sample.key) for row in rows],
            "image": [row.sample.image for row in rows],
            "format": [row.info.format for row in rows],
            "crc32": [zlib.crc32(row.sample.image) for row in rows],
            "width": [row.info.width for row in rows],
            "height": [row.info.height for row in rows],
            "text": [clean_text(row.sample.captions[0]) if row.sample.captions else "" for row in rows],
            "captions": [dump_captions(row.sample.captions) for row in rows],
            SOURCE: [clean_text(row.part) for row in rows],
        }
        for name, kind in self._kinds.items():
            data[name] = [convert(row.metadata.get(name), kind) for row in rows]
        try:
            self._dataset.append(data)
        except Exception as error:
            raise self._failure(engine.one_line(error)) from None
        self._buffer, self._buffer_bytes = [], 0
        self._pending_rows += len(rows)
        self._pending_bytes += size

    def _fit_columns(self, batch: list[dict[str, object]]) -> None:
        """Add the columns that these rows are the first to need, and widen those that cannot hold them."""
        names = dict.fromkeys(name for metadata in batch for name in metadata)
        for name in names:
            known = self._kinds.get(name)
            gap = [None] if known is None and self.rows + self._pending_rows else []
            kind = kind_of([*gap, *(metadata.get(name) for metadata in batch)], known)
            if kind is None or kind is known:
                continue
            if len(self._kinds) >= MAX_METADATA_COLUMNS and known is None:
                raise SourceError(
                    f"the metadata has more than {MAX_METADATA_COLUMNS} different names",
                    found=", ".join(list(self._kinds)[:5]) + ", …",
                    allowed="the same names in every sample: each becomes a column",
                )
            self._kinds[name] = self._add_column(name, kind) if known is None else self._widen(name, known, kind)
        for name in self._kinds.keys() - names.keys():
            if self._kinds[name] is Kind.BOOL:  # a gap of a whole batch
                self._kinds[name] = self._widen(name, Kind.BOOL, Kind.INT)

    def _add_column(self, name: str, kind: Kind) -> Kind:
        self._dataset.add_column(name, kind.type_name)
        # Deep Lake fills the rows before with NULL, which TQL compares as neither '' nor a number.
        for start, stop in self._blocks():
            self._dataset[name][start:stop] = [kind.missing] * (stop - start)
        return kind

    def _widen(self, name: str, old: Kind, new: Kind) -> Kind:
        """Give a column a wider type, keeping its values."""
        missing = {Kind.INT: MISSING_INT, Kind.TEXT: None}.get(old)

        def stored(start: int, stop: int) -> list[object]:
            values = self._dataset[name][start:stop]
            plain = values if isinstance(values, list) else values.tolist()
            return [None if value == missing or value != value else value for value in plain]

        for start, stop in self._blocks():
            new = kind_of(stored(start, stop), new) or new
        wider = f"{name} widened"
        self._dataset.add_column(wider, new.type_name)
        for start, stop in self._blocks():
            self._dataset[wider][start:stop] = [convert(value, new) for value in stored(start, stop)]
        self._dataset.remove_column(name)
        self._dataset.rename_column(wider, name)
        return new

    def _blocks(self) -> list[tuple[int, int]]:
        total = self.rows + self._pending_rows
        return [(start, min(start + _BLOCK, total)) for start in range(0, total, _BLOCK)]

    def _require_room(self, size: int) -> None:
        if engine.is_remote(self.path):
            return
        free = shutil.disk_usage(self.path).free
        if free < size + SPARE_BYTES:
            needed = size + SPARE_BYTES
            found = f"{free / 2**20:,.1f} MB free, {needed / 2**20:,.1f} MB needed for the next rows"
            raise self._failure(found, full=True)

    def _check_written(self) -> None:
        """A full disk goes unnoticed by Deep Lake: look at what has arrived (see `engine.short_files`)."""
        if engine.is_remote(self.path):
            return
        for problem in engine.short_files(self._dataset, self.path, known=self._checked).values():
            try:
                engine.open_dataset(self.path)
                kept = ""  # the commit itself did not fit either, so the lake is as the one before left it
            except LakeError:
                # Nothing can be taken back: that too would be written, to the full disk.
                kept = f"{self.path} is damaged and cannot be read"
            raise self._failure(problem, kept=kept, full=True)

    def _failure(self, found: str, *, kept: str = "", full: bool = False) -> OutputError:
        how = " with --overwrite" if kept else ": it goes on from there"
        kept = kept or (f"{self.path} holds {self.rows:,} rows" if self.rows else "no row has been kept")
        return OutputError(
            f"cannot write on to the lake at {self.path}" + (": the disk is full" if full else ""),
            found=f"{found}; {kept}",
            next_step=("free some space, and run" if full else "run") + " the command again" + how,
        )


def _drop_empty_counters(path: str) -> None:
    """Let a lake that met a full disk be written again.

    Deep Lake keeps the number of its next commit in a file, which a full disk leaves empty; then it refuses to write.
    Where there is no such file, it counts the commits anew.
    """
    for counter in engine.local_folder(path).glob("_deeplake_log/*/next_base"):
        if counter.stat().st_size == 0:
            counter.unlink()
