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
from lakeclip.lake.sources.base import Collision, Rejected, Source
from lakeclip.lake.sources.open import open_sources
from lakeclip.lake.target import check_target, remove_lake
from lakeclip.lake.write import LakeWriter


@dataclass
class IngestReport:
    """The account of an ingest.

    Attributes:
        lake: path of the lake.
        sources: what was read.
        rows: rows in the lake.
        without_caption: how many of them have none.
        rejected: everything that could not become a row, and why.
        collisions: files that claim the same name, and what was done about it.
        ignored: suffixes of files that are neither images, captions nor metadata, and how many have them.
        columns: the lake's columns and their types.
        seconds: time it took.
    """

    lake: str
    sources: list[str]
    rows: int = 0
    without_caption: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    collisions: list[Collision] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows_per_second(self) -> float:
        """Rows written per second, all in all."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def reasons(self) -> Counter[str]:
        """How many were rejected for each kind of reason."""
        return Counter(item.reason.partition(":")[0] for item in self.rejected)

    def to_dict(self) -> dict[str, object]:
        """As plain values, for JSON."""
        return {
            "lake": self.lake,
            "sources": self.sources,
            "rows": self.rows,
            "without_caption": self.without_caption,
            "rejected": [item._asdict() for item in self.rejected],
            "reasons": dict(self.reasons),
            "collisions": [item._asdict() for item in self.collisions],
            "ignored": dict(self.ignored),
            "columns": self.columns,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
        }


def ingest(sources: Sequence[str], lake: str, *, overwrite: bool = False) -> IngestReport:
    """Read folders of pairs and WebDataset tars into a new lake.

    Args:
        sources: folders, tar files, and patterns of tar files (`train-{0000..0003}.tar`, `train-*.tar`).
        lake: where the lake will be.
        overwrite: replace the lake that is there. Anything else that is there is never touched.

    Raises:
        SourceError: a source is missing, or nothing in any of them can become a row; what was there is then left alone.
        LakeError: there is a lake already, or something that is not a lake.
        OutputError: the lake cannot be written, or its disk is full.
    """
    check_target(lake, sources, overwrite=overwrite)
    return fill_lake(open_sources(sources), lake, overwrite=overwrite)


def fill_lake(sources: Sequence[Source], lake: str, *, overwrite: bool = False) -> IngestReport:
    """Write opened sources into a new lake.

    Args:
        sources: where the samples come from.
        lake: where the lake will be; see `check_target`.
        overwrite: replace the lake that is there, once the first good row has been found.

    Raises:
        SourceError: there is no good row at all; no lake is made then.
        LakeError: see `check_target`.
        OutputError: the lake cannot be written. What has been committed of it stays, and the message says how much.
        KeyboardInterrupt: the same, on Ctrl-C.
    """
    check_target(lake, overwrite=overwrite)
    path = engine.normal_path(lake)
    report = IngestReport(path, [source.name for source in sources])
    started = time.perf_counter()
    writer: LakeWriter | None = None
    try:
        # What Pillow thinks of odd files is in the account, where it matters.
        with warnings.catch_warnings(), _Bar(sources) as bar:
            warnings.simplefilter("ignore")
            for part, item, info in check_all(sources):
                if isinstance(item, Rejected):
                    report.rejected.append(item)
                    continue
                if writer is None:
                    if overwrite:
                        remove_lake(path)
                    writer = LakeWriter(path)
                assert info is not None, "only what is rejected has none"
                writer.append(item, info, part)
                report.rows += 1
                report.without_caption += not item.captions
                bar.show(report.rows)
        if writer is not None:
            writer.close()
    except BaseException as error:
        if writer is not None:
            writer.abandon()
        if writer is not None and not writer.rows:
            remove_lake(path)
        elif writer is not None and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{path} holds the first {writer.rows:,} rows") from None
        raise
    for source in sources:
        report.collisions += source.collisions
        report.ignored += source.ignored
    report.seconds = time.perf_counter() - started
    if writer is None:
        raise _nothing_good(report)
    report.columns = writer.columns
    return report


class _Bar:
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

    def __enter__(self) -> _Bar:
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
