"""Log rows that could not be used, and list them in a file of the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from lakeclip.lake.rows import RowSource

#: Name of the file in a run folder that lists the unusable rows.
QUARANTINE = "quarantine.jsonl"

_log = logging.getLogger(__name__)


class Quarantine:
    """Log of unusable rows. Each process logs a row once. Picklable.

    Attributes:
        file: file to which all processes of the run append one JSON line per row (`lake`, `row`, `reason`); None to
            only log the rows.
    """

    def __init__(self) -> None:
        self.file: Path | None = None
        self._logged: set[int] = set()

    def add(self, source: RowSource, row: int, reason: str) -> None:
        """Log a row and append it to the file.

        Args:
            source: source of the row.
            row: its `Row.row`.
            reason: reason why the row is unusable.
        """
        if row in self._logged:
            return
        self._logged.add(row)
        path, number = source.locate(row)
        _log.warning("row %d of %s cannot be used and is replaced by another: %s", number, path, reason)
        if self.file is not None:
            line = json.dumps({"lake": path, "row": number, "reason": reason})
            try:
                # One short write per line, so that lines of several processes do not interleave.
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:  # a full disk must not stop the run; the row is in the log
                _log.warning("the row could not be listed in %s: %s", self.file, error.strerror)


def read_quarantine(file: Path) -> dict[str, dict[int, str]]:
    """Return the unusable rows of a run as lake → row → reason, without duplicates from several processes."""
    reasons: dict[str, dict[int, str]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a full disk or a kill
                continue
            reasons.setdefault(entry["lake"], {})[entry["row"]] = entry["reason"]
    return reasons
