"""Rows that could not be used: logged once, and listed in a file of the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from lakeclip.lake.rows import RowSource
from lakeclip.lake.several import Lakes

#: Where a run lists the rows that it could not use.
QUARANTINE = "quarantine.jsonl"

_log = logging.getLogger(__name__)


class Quarantine:
    """Notes rows that cannot be used, once in each process. Picklable.

    Attributes:
        file: where they are listed, a line of JSON each (`lake`, `row`, `reason`), by all processes of the run; None to
            log them only.
    """

    def __init__(self) -> None:
        self.file: Path | None = None
        self._noted: set[int] = set()

    def add(self, source: RowSource, row: int, reason: str) -> None:
        """Note a row.

        Args:
            source: what it was read from.
            row: its `Row.row`.
            reason: why it cannot be used.
        """
        if row in self._noted:
            return
        self._noted.add(row)
        path, number = source.locate(row) if isinstance(source, Lakes) else (source.path, row)
        _log.warning("row %d of %s cannot be used, another takes its place: %s", number, path, reason)
        if self.file is not None:
            line = json.dumps({"lake": path, "row": number, "reason": reason}, ensure_ascii=False)
            try:
                # A short line in one write: the lines of several processes do not mix.
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:  # a full disk: the log has it, and checkpoints matter more
                _log.warning("it is not listed in %s: %s", self.file, error.strerror)


def read_quarantine(file: Path) -> dict[str, dict[int, str]]:
    """What a run could not use: lake → row → reason, without the repetitions of its several processes."""
    found: dict[str, dict[int, str]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a full disk or a kill
                continue
            found.setdefault(entry["lake"], {})[entry["row"]] = entry["reason"]
    return found
