"""Checks of the options for sources, made before anything is read."""

from __future__ import annotations

import os

from lakeclip.errors import ConfigError
from lakeclip.ingestion.sources.format import SourceOptions
from lakeclip.lake.caption_template import fill_template, template_names

#: Ways to write a tab on a command line.
_TABS = ("\\t", "tab", "TAB")


def parse_delimiter(delimiter: str) -> str:
    """Return the separator that a user has named: one character, or a tab as `\\t` or `tab`.

    Raises:
        ConfigError: it has another length, or is a quote or a line end.
    """
    separator = "\t" if delimiter in _TABS else delimiter
    if len(separator) > 1 and len(separator.strip(" ")) == 1:
        separator = separator.strip(" ")  # "| ": spaces beside a separator are ignored in any case
    if len(separator) != 1 or separator in "\"'\r\n\0":
        raise ConfigError(
            f"{delimiter!r} cannot be the delimiter of a table",
            found=f"{len(delimiter)} characters" if len(separator) != 1 else "a quote or the end of a line",
            allowed="one character, such as ',', ';' or '|', or tab",
            next_step="--delimiter tab",
        )
    return separator


def check_options(options: SourceOptions) -> None:
    """Raise if an option has a value that no source could use.

    Raises:
        ConfigError: the encoding is unknown, the delimiter is not one character, the folder of the images does not
            exist, or the caption template is invalid.
    """
    if options.encoding is not None:
        _check_encoding(options.encoding)
    if options.delimiter is not None:
        parse_delimiter(options.delimiter)
    if options.image_root is not None and not os.path.isdir(options.image_root):
        raise ConfigError(
            f"the folder of the images {options.image_root!r} cannot be read",
            found="a file" if os.path.exists(options.image_root) else "nothing at this path",
            allowed="a folder that the file names in the table are relative to",
            next_step="--image-root FOLDER",
        )
    if any(not name.strip() for name in options.caption_columns):
        raise ConfigError("a caption column has no name", allowed="the name of a column or of a JSON key")
    if options.caption_template is not None:
        _check_template(options.caption_template)


def _check_encoding(encoding: str) -> None:
    try:
        b"a ".decode(encoding, "replace")
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"the encoding {encoding!r} is unknown",
            found=str(error),
            allowed="an encoding of Python, such as utf-8, utf-16, cp1252, gb18030, shift_jis or windows-1251",
            next_step="omit --encoding: it is detected",
        ) from None


def _check_template(template: str) -> None:
    try:
        names = template_names(template)
        problem = "" if names else "it names no column"
        if any(not name or name.isdigit() for name in names):
            problem = "braces without a name"
        else:
            fill_template(template, dict.fromkeys(names))
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise ConfigError(
            f"the caption template {template!r} is invalid",
            found=problem,
            allowed="text with names of columns in braces, such as 'a photo of a {label}'",
            next_step="write {{ and }} for braces that are no names",
        )
