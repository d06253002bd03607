"""Description of a source format: which paths it reads and how they are opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from lakeclip.ingestion.sources.base import Source


@dataclass(frozen=True)
class SourceOptions:
    """Options for opening the paths of one format.

    Attributes:
        parts: a name for each path, different from those of all other paths; the lake stores it with every row.
        image_column: column with the images, their URLs or their file names; inferred by default.
        caption_columns: columns (of tables and lakes) or keys (of JSON) with the captions, best first; inferred by
            default.
        query: WHERE clause that selects rows; all rows by default.
        caption_template: caption with names of columns or keys in braces; the captions as they are by default.
        encoding: encoding of text files; detected by default.
        delimiter: separator of the columns of CSV files; detected by default.
        image_root: folder that file names of images are relative to; the folder of the table by default.
    """

    parts: Sequence[str]
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    query: str | None = None
    caption_template: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    image_root: str | None = None

    def with_parts(self, parts: Sequence[str]) -> SourceOptions:
        """Return the same options for other paths."""
        return replace(self, parts=parts)

    @property
    def caption_column(self) -> str | None:
        """The first of the caption columns; None if they are to be inferred."""
        return self.caption_columns[0] if self.caption_columns else None


#: Function that opens all paths of a format, usually as one source.
Opener: TypeAlias = Callable[[Sequence[str], SourceOptions], Iterable[Source]]


@dataclass(frozen=True)
class SourceFormat:
    """A kind of data that can be ingested.

    Attributes:
        name: short name, such as "webdataset".
        description: what a user may pass, for messages: "WebDataset .tar files".
        open: function that opens all paths of this format.
        suffixes: lower-case endings of file names. Files with these endings are also found inside a folder.
        matches: whether a path or URL is of this format, for formats that suffixes cannot describe.
        choose_files: function that chooses among the files found in one folder; all of them by default.
        has_columns: whether `image_column`, `caption_columns` and `caption_template` apply.
        has_query: whether `query` applies.
        sniffed: suffixes of files inside a folder whose content `matches` decides.
        beside_images: suffixes of files that name images which lie beside them.
        options: names of the further options that apply, such as "encoding".
    """

    name: str
    description: str
    open: Opener
    suffixes: tuple[str, ...] = ()
    matches: Callable[[str], bool] | None = None
    choose_files: Callable[[Sequence[str]], Sequence[str]] | None = None
    has_columns: bool = False
    has_query: bool = False
    sniffed: tuple[str, ...] = ()
    beside_images: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def applies(self, option: str) -> bool:
        """Return whether an option (a field of `SourceOptions`) applies to this format."""
        if option == "query":
            return self.has_query
        return option in self.options or (
            self.has_columns and option in ("image_column", "caption_columns", "caption_template")
        )

    def has_suffix(self, path: str) -> bool:
        """Return whether a path ends in one of the suffixes, in upper or lower case."""
        return bool(self.suffixes) and path.lower().endswith(self.suffixes)

    def names_images(self, paths: Sequence[str]) -> bool:
        """Return whether files of this format name images that lie beside them, rather than hold them."""
        return bool(self.beside_images) and all(path.lower().endswith(self.beside_images) for path in paths)

    def accepts(self, path: str) -> bool:
        """Return whether a local path is of this format. A folder is never recognized by its suffix."""
        if self.has_suffix(path) and not os.path.isdir(path):
            return True
        return self.matches is not None and self.matches(path)
