"""Where figures go: the screen, and a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lakeclip.errors import ConfigError, OutputError, printable

#: What a plot's name may end with; the suffix says the format.
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def writable(file: str | None) -> Path | None:
    """Find out before the work whether its result can be written; what is there stays until then."""
    if file is None:
        return None
    path = Path(file)
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
    if not existed:
        path.unlink()
    return path


def plottable(file: str | None) -> Path | None:
    """Find out before the work whether its plot can be written, and in which format.

    Raises:
        ConfigError: the suffix is of no format that there is.
        OutputError: it cannot be written.
    """
    if file is not None and Path(file).suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(
            f"a plot cannot be written to {file}",
            found=f"the suffix {Path(file).suffix!r}" if Path(file).suffix else "no suffix",
            allowed=", ".join(PLOT_SUFFIXES),
        )
    return writable(file)


def save(path: Path | None, content: dict[str, Any]) -> None:
    """Write figures as JSON, where a file was asked for."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None


def console() -> Console:
    """The screen that figures are shown on."""
    # A pipe has no width: there nothing is cut off.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def plain(text: str) -> str:
    """Text from data as a `Console` may print it: no markup, no line breaks, nothing that a terminal would obey."""
    return escape(printable(text))
