"""Captions made from columns: a template, or several columns joined."""

from __future__ import annotations

import string
from collections.abc import Sequence

from lakeclip.errors import LakeError
from lakeclip.lake.columns import is_readable, list_columns
from lakeclip.lake.schema import load_captions

#: The column that may hold several captions a row.
_SEVERAL = "captions"


class CaptionTemplate:
    """A caption with the names of columns in braces: `a photo of {label}, {text}`. Picklable.

    A row's missing values leave nothing behind; a row in which every value is missing has no caption. `{captions}`
    gives as many captions as the row has.

    Args:
        template: as in Python's `str.format`, with formats for numbers (`{price:.2f}`); {{ and }} are braces.
        columns: name → type of the lake's columns.
        path: the lake's path, for errors.

    Raises:
        LakeError: it is no template, or names what is no column.
    """

    def __init__(self, template: str, columns: dict[str, str], path: str) -> None:
        self.template = template
        try:
            fields = (name for _, name, _, _ in string.Formatter().parse(template) if name is not None)
            self.names = list(dict.fromkeys(fields))
            self._fill({name: "" if columns.get(name) == "text" else 0 for name in self.names})
            problem = "" if self.names else "no column in it"
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            self.names, problem = [], f"{type(error).__name__}: {error}"
        if unknown := [name for name in self.names if name not in columns or not is_readable(columns[name])]:
            problem = f"{', '.join(unknown)} cannot be read, or is no column"
        if problem:
            raise LakeError(
                f"the caption template {template!r} cannot be used on the lake at {path}",
                found=problem,
                allowed=f"text with columns in braces, such as 'a photo of {{text}}', over {list_columns(columns)}",
            )

    def captions(self, values: Sequence[Sequence[object]]) -> list[tuple[str, ...]]:
        """Captions of rows.

        Args:
            values: for each name in `names`, its column's values in those rows.
        """
        return [self._row(dict(zip(self.names, row, strict=True))) for row in zip(*values, strict=True)]

    def _row(self, values: dict[str, object]) -> tuple[str, ...]:
        if all(value is None or value == "" for value in values.values()):
            return ()
        if _SEVERAL not in values:
            return (self._fill(values),)
        stored = values[_SEVERAL]
        several = load_captions(stored if isinstance(stored, str) else None)
        return tuple(self._fill({**values, _SEVERAL: caption}) for caption in several)

    def _fill(self, values: dict[str, object]) -> str:
        blank = _Blank()
        filled = self.template.format_map({name: blank if value is None else value for name, value in values.items()})
        return " ".join(filled.split())


class _Blank:
    """A missing value, in whatever format it is asked for."""

    def __format__(self, spec: str) -> str:
        return ""
