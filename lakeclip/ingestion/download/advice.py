"""Advice for downloads that failed: the flag that allows them, and whether another attempt can help."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from lakeclip.errors import LakeclipError, SourceError
from lakeclip.ingestion.validate import NOT_DOWNLOADED

if TYPE_CHECKING:
    from lakeclip.ingestion.result import IngestResult

#: Kinds of failure after which the same command may succeed later.
_TEMPORARY = re.compile(r"timed out|connection failed|host is down|HTTP (408|425|429|5\d\d)|" + NOT_DOWNLOADED)
#: Kind of failure → flag that allows such downloads, and what is allowed.
_FLAGS = {
    "refused": ("--allow-private", "addresses of this machine or its private network"),
    "opted out": ("--no-respect-opt-out", "servers that forbid training (X-Robots-Tag)"),
}


def failure_hint(reason: str) -> str:
    """Return what a kind of failure means and which flag allows such downloads; "" if nothing needs to be said."""
    flag, meaning = _FLAGS.get(reason, ("", ""))
    return f"{meaning}; {flag} allows them" if flag else ""


def next_downloads(result: IngestResult) -> list[tuple[str, str]]:
    """Return the commands that could download further images into a lake, each after its purpose.

    A command that would fail again, because an address is refused or the server has no such file, is not among them.
    """
    lake = shlex.quote(result.lake)
    commands: list[tuple[str, str]] = []
    failures = sum(count for reason, count in result.unusable.items() if _TEMPORARY.match(reason))
    if failures:
        verb = "download the missing images" if NOT_DOWNLOADED in result.unusable else f"try {failures:,} again later"
        commands.append((verb, f"lakeclip ingest --download {lake}"))
    for reason, (flag, meaning) in _FLAGS.items():
        if result.unusable.get(reason):
            commands.append((f"allow {meaning}", f"lakeclip ingest --download {flag} {lake}"))
    return commands


def only_dead_links_are_left(result: IngestResult) -> bool:
    """Return True if the lake has images already, and no command could download the few that it lacks."""
    return not result.rows and result.rows_before > 0 and not next_downloads(result)


def no_downloads_error(result: IngestResult) -> LakeclipError:
    """Return the error to show if all downloads failed."""
    reasons = result.unusable.most_common(5)
    found = "; ".join(f"{count:,} × {reason}" for reason, count in reasons)
    hints = [hint for reason, _ in reasons if (hint := failure_hint(reason))]
    return SourceError(
        f"none of {result.failed_downloads:,} images could be downloaded",
        found=f"{found} ({'; '.join(hints)})" if hints else found,
        allowed="public http and https addresses of images" if "--allow-private" in str(hints) else "",
        next_step="; ".join(f"{command} to {purpose}" for purpose, command in next_downloads(result))
        or f"check the addresses: lakeclip inspect {shlex.quote(result.lake)}",
    )
