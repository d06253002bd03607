"""The templates of lakeclip's pages."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from lakeclip.errors import OutputError
from lakeclip.files import whole_file
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
    try:
        with whole_file(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or str(error)) from None
    return path
