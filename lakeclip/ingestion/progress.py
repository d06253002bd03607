"""Progress bar of an ingest."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lakeclip.ingestion.sources.base import Source


class ProgressBar:
    """Progress bar on stderr, in the units of the sources, with rows per second.

    Args:
        sources: the sources that are being read.
        enabled: whether to show the bar; by default only if stderr is a terminal.
    """

    def __init__(self, sources: Sequence[Source], enabled: bool | None = None) -> None:
        self._sources = sources
        self._progress = Progress(
            TextColumn("ingest"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f} rows/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if enabled is None else enabled),
        )
        self._task = self._progress.add_task("ingest", total=sum(source.size for source in sources), rows=0, rate=0.0)
        self._started = time.perf_counter()

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, rows: int) -> None:
        """Show the number of rows so far; called for every row, it redraws every 64th time."""
        if rows % 64 == 0:
            rate = rows / (time.perf_counter() - self._started)
            position = sum(source.position for source in self._sources)
            self._progress.update(self._task, completed=position, rows=rows, rate=rate)
