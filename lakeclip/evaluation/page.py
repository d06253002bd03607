"""The templates of lakeclip's pages."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

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
