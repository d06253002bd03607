"""Templates of lakeclip's HTML pages, and writing them to files."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from lakeclip.errors import OutputError, escape_surrogates
from lakeclip.files import atomic_write
from lakeclip.lake.statistics.counters import format_percent


def page_template(name: str) -> jinja2.Template:
    """Load a template of this package. Values are escaped, and a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["percent"] = format_percent
    return environment.get_template(name)


def write_page(path: Path, page: str) -> Path:
    """Write a page atomically, and return its path; if the disk is full, the old page stays.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write(escape_surrogates(page).encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
    return path
