"""From sources to a lake: check every image, write what is good, account for what is not."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lakeclip.errors import SourceError
from lakeclip.lake import engine
from lakeclip.lake.check import check_all
from lakeclip.lake.download import DownloadOptions, Downloads
from lakeclip.lake.ledger import Fresh, Ledger, short_names, whole_parts
from lakeclip.lake.sources.base import Collision, Rejected, Source
from lakeclip.lake.sources.open import open_sources
from lakeclip.lake.target import check_target, clear_target, remove_lake
from lakeclip.lake.write import LakeWriter

#: What is left out is listed by name up to here, and counted beyond: a source may have no end of it.
MAX_LISTED = 100_000


@dataclass
class IngestReport:
    """The account of an ingest.

    Attributes:
        lake: path of the lake.
        sources: what was read.
        rows: rows that were added.
        rows_before: rows that the lake held already, where it was gone on with.
        known: what the sources hold that is among those.
        without_caption: rows that were added and have none.
        unusable: why rows that were added cannot be trained on, and how many each.
        reasons: how many could not become a row, by kind of reason.
        rejected: the first `MAX_LISTED` of them, and why.
        collisions: files that claim the same name, and what was done about it.
        ignored: suffixes of files that are neither images, captions nor metadata, and how many have them.
        columns: the lake's columns and their types.
        mapping: what was taken from which column, for sources that have columns.
        seconds: time it took.
    """

    lake: str
    sources: list[str]
    rows: int = 0
    rows_before: int = 0
    known: int = 0
    without_caption: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejected] = field(default_factory=list)
    collisions: list[Collision] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)
    mapping: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows_per_second(self) -> float:
        """Rows written per second, all in all."""
        return self.rows / self.seconds if self.seconds else 0.0

    def reject(self, item: Rejected) -> None:
        """Put something that could not become a row into the account."""
        self.reasons[item.reason.partition(":")[0]] += 1
        if len(self.rejected) < MAX_LISTED:
            self.rejected.append(item)

    def to_dict(self) -> dict[str, object]:
        """As plain values, for JSON."""
        return {
            "lake": self.lake,
            "sources": self.sources,
            "rows": self.rows,
            "rows_before": self.rows_before,
            "known": self.known,
            "without_caption": self.without_caption,
            "unusable": dict(self.unusable),
            "rejected": [item._asdict() for item in self.rejected],
            "reasons": dict(self.reasons),
            "collisions": [item._asdict() for item in self.collisions],
            "ignored": dict(self.ignored),
            "columns": self.columns,
            "mapping": self.mapping,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
        }


def ingest(
    sources: Sequence[str],
    lake: str,
    *,
    overwrite: bool = False,
    append: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    query: str | None = None,
    download: DownloadOptions | None = None,
) -> IngestReport:
    """Read folders, tars, tables and lakes into a lake.

    Args:
        sources: see `open_sources`.
        lake: where the lake is or will be.
        overwrite: replace the lake that is there. Anything else that is there is never touched.
        append: add to the lake that is there what it does not hold yet.
        image_column: column of tables and lakes with the images, or with their addresses or paths; found by default.
        caption_column: column of tables and lakes with the captions; found by default.
        query: which rows of lakes to read.
        download: fetch the images of rows that have only an address.

    Raises:
        SourceError: a source is missing, or nothing in any of them can become a row; what was there is then left alone.
        LakeError: there is a lake already, or something that is not a lake.
        OutputError: the lake cannot be written, or its disk is full.
    """
    check_target(lake, sources, overwrite=overwrite, append=append)
    opened = open_sources(sources, image_column=image_column, caption_column=caption_column, query=query)
    return fill_lake(opened, lake, overwrite=overwrite, append=append, download=download)


def fill_lake(
    sources: Sequence[Source],
    lake: str,
    *,
    overwrite: bool = False,
    append: bool = False,
    download: DownloadOptions | None = None,
) -> IngestReport:
    """Write opened sources into a lake: a new one, or the one that an ingest of them was filling when it was cut short.

    Every sample becomes one row, however often that happens: what the lake holds is passed over.

    Args:
        sources: where the samples come from.
        lake: where the lake is or will be; see `check_target`.
        overwrite: replace the lake that is there, once the first good row has been found.
        append: add to the lake that is there what it does not hold yet.
        download: fetch the images of samples that have only an address.

    Raises:
        SourceError: there is no good row at all; no lake is made then.
        LakeError: see `check_target`.
        OutputError: the lake cannot be written. What has been committed of it stays, and the message says how much.
        KeyboardInterrupt: the same, on Ctrl-C.
    """
    path = engine.normal_path(lake)
    goes_on = check_target(lake, overwrite=overwrite, append=append, names=short_names(sources))
    report = IngestReport(path, [source.name for source in sources])
    started = time.perf_counter()
    writer: LakeWriter | None = None
    fresh: list[Fresh] = []
    read: Sequence[Source] = sources
    try:
        if goes_on:
            writer = LakeWriter(path, existing=True)
            writer.begin(sources)
            dataset = engine.open_dataset(path)
            report.rows_before = len(dataset)
            ledger, whole = Ledger(dataset), whole_parts(dataset)
            for source in sources:
                source.skip_parts(whole)
            read = fresh = [Fresh(source, ledger) for source in sources]
        if download is not None:
            read = [Downloads(source, download) for source in read]
        # What Pillow thinks of odd files is in the account, where it matters.
        with warnings.catch_warnings(), Bar(read) as bar:
            warnings.simplefilter("ignore")
            here = ""
            for part, item, info in check_all(read):
                if isinstance(item, Rejected):
                    report.reject(item)
                    continue
                if writer is None:
                    clear_target(path, overwrite=overwrite)
                    writer = LakeWriter(path)
                    writer.begin(sources)
                if part != here:
                    _end_parts(writer, sources, here)
                    here = part
                assert info is not None, "only what is rejected has none"
                writer.append(item, info, part)
                report.rows += 1
                report.without_caption += not item.captions
                if item.unusable:
                    report.unusable[item.unusable.partition(":")[0]] += 1
                bar.show(report.rows)
        if writer is not None:
            _end_parts(writer, sources, here)
            writer.close(sources)
    except BaseException as error:
        if writer is not None:
            writer.abandon()
        if writer is not None and not writer.rows and not goes_on:
            remove_lake(path)
        elif writer is not None and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{path} holds {writer.rows:,} rows; the same command goes on from there") from None
        raise
    for source in sources:
        report.collisions += source.collisions
        report.ignored += source.ignored
        if source.mapping:
            report.mapping[source.name] = source.mapping
    report.known = sum(source.known for source in fresh)
    report.seconds = time.perf_counter() - started
    if writer is None:
        raise _nothing_good(report)
    report.columns = writer.columns
    return report


def _end_parts(writer: LakeWriter, sources: Sequence[Source], part: str) -> None:
    """Note that a part's last sample has been written, if its source has come to its end."""
    for source in sources:
        for ended in source.ended:
            if ended[0] == part:
                writer.end_part(*ended)


class Bar:
    """Progress in the sources' own units, with rows per second; nothing where stderr is not a terminal."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._progress = Progress(
            TextColumn("ingest"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f} rows/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("ingest", total=sum(source.size for source in sources), rows=0, rate=0.0)
        self._started = time.perf_counter()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, rows: int) -> None:
        if rows % 64 == 0:
            rate = rows / (time.perf_counter() - self._started)
            done = sum(source.position for source in self._sources)
            self._progress.update(self._task, completed=done, rows=rows, rate=rate)


def _nothing_good(report: IngestReport) -> SourceError:
    reasons = "; ".join(f"{count:,} × {reason}" for reason, count in report.reasons.most_common(5))
    examples = ", ".join(f"{item.key} ({item.reason})" for item in report.rejected[:2])
    found = f"{reasons}; for example {examples}" if reasons else "nothing"
    if report.ignored:
        found += "; files of no known kind: " + ", ".join(
            f"{n:,} {suffix}" for suffix, n in report.ignored.most_common(5)
        )
    return SourceError(
        f"nothing in {', '.join(report.sources)} can become a row",
        found=found,
        allowed="images with .txt captions that share their name",
    )
