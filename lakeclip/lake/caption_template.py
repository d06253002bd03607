"""Captions made from columns: a template, or several columns joined."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from lakeclip.errors import LakeError
from lakeclip.lake.columns import is_readable, list_columns
from lakeclip.lake.schema import load_captions

#: The column that may hold several captions per row.
_CAPTIONS = "captions"


class CaptionTemplate:
    """A caption with column names in braces: `a photo of {label}, {text}`. Picklable.

    Missing values are replaced by nothing; a row whose values are all missing has no caption. With `{captions}` a row
    has as many captions as its column `captions` holds.

    Args:
        template: as in Python's `str.format`, with formats for numbers (`{price:.2f}`); {{ and }} are braces.
        columns: name → type of the lake's columns.
        path: the lake's path, for errors.

    Raises:
        LakeError: the template is invalid, or names something that is not a column.
    """

    def __init__(self, template: str, columns: dict[str, str], path: str) -> None:
        self.template = template
        try:
            self.names = template_names(template)
            self._fill({name: "" if columns.get(name) == "text" else 0 for name in self.names})
            problem = "" if self.names else "it names no column"
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            self.names, problem = [], f"{type(error).__name__}: {error}"
        if unknown := [name for name in self.names if name not in columns or not is_readable(columns[name])]:
            problem = f"{', '.join(unknown)} cannot be read, or is not a column"
        if problem:
            raise LakeError(
                f"the caption template {template!r} cannot be used on the lake at {path}",
                found=problem,
                allowed=f"text with columns in braces, such as 'a photo of {{text}}', over {list_columns(columns)}",
            )

    def captions(self, values: Sequence[Sequence[object]]) -> list[tuple[str, ...]]:
        """Return the captions of rows.

        Args:
            values: for each name in `names`, its column's values in those rows.
        """
        return [self._row(dict(zip(self.names, row, strict=True))) for row in zip(*values, strict=True)]

    def _row(self, values: dict[str, object]) -> tuple[str, ...]:
        if all(value is None or value == "" for value in values.values()):
            return ()
        if _CAPTIONS not in values:
            return (self._fill(values),)
        stored = values[_CAPTIONS]
        several = load_captions(stored if isinstance(stored, str) else None)
        return tuple(self._fill({**values, _CAPTIONS: caption}) for caption in several)

    def _fill(self, values: dict[str, object]) -> str:
        return fill_template(self.template, values)


def template_names(template: str) -> list[str]:
    """Return the names in braces, each once, in order.

    Raises:
        ValueError: the template is not a valid format string.
    """
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name is not None))


def fill_template(template: str, values: Mapping[str, object]) -> str:
    """Replace the names in braces by their values, missing ones (None) by nothing, and join runs of whitespace.

    Names are taken as they are, dots and brackets included.

    Raises:
        ValueError: a value does not suit its format (`{price:.2f}` and a text).
        KeyError: a name has no value.
    """
    filled = ""
    formatter = string.Formatter()
    for text, name, spec, conversion in formatter.parse(template):
        filled += text
        if name is not None:
            value = values[name]
            value = _Blank() if value is None else formatter.convert_field(value, conversion)
            filled += format(value, spec or "")
    return " ".join(filled.split())


class _Blank:
    """A missing value: empty in every format."""

    def __format__(self, spec: str) -> str:
        return ""
