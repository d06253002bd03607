"""Output of figures: the terminal, and a JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lakeclip.errors import ConfigError, OutputError, escape_surrogates, printable

#: Suffixes of plot files; the suffix selects the format.
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def writable(file: str | None) -> Path | None:
    """Raise if the file cannot be written, before the work starts. An existing file stays unchanged.

    Raises:
        OutputError: it cannot be written.
    """
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
    """Raise if the plot cannot be written, before the work starts.

    Raises:
        ConfigError: the suffix is not that of a plot format.
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
    """Write figures as JSON if a file was requested."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(_writable(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None


def _writable(value: Any) -> Any:
    """Return a value with all its texts as they can be written; see `escape_surrogates`."""
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, dict):
        return {_writable(name): _writable(part) for name, part in value.items()}
    return [_writable(part) for part in value] if isinstance(value, (list, tuple)) else value


def console() -> Console:
    """Return the console that results are printed to."""
    # A pipe has no width: use a wide console, so that nothing is cut off.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def plain(text: str) -> str:
    """Escape text from data for a `Console`: no markup, line breaks or control characters."""
    return escape(printable(text))
