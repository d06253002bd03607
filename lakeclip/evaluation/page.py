"""The templates of lakeclip's pages."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from lakeclip.errors import OutputError
from lakeclip.lake.survey.tally import percent


def page_template(name: str) -> jinja2.Template:
    """A template beside this file. What is put into it is escaped, and what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["percent"] = percent
    return environment.get_template(name)


def write_page(path: Path, page: str) -> Path:
    """Write a page, and return its path. A reader never meets half a page, and a full disk leaves the old one.

    Raises:
        OutputError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
    return path
