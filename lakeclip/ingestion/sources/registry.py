"""Registry of source formats: the built-in ones, and those that other packages add with `register_source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lakeclip.errors import ConfigError
from lakeclip.ingestion.sources import caption_lists, folder, imagefolder, lakes, tables, webdataset
from lakeclip.ingestion.sources.annotations import source as annotation_files
from lakeclip.ingestion.sources.format import Opener, SourceFormat

#: All formats in matching order: the first one that accepts a path reads it. A folder that holds another lake is
#: therefore never read as a folder of images.
_FORMATS: list[SourceFormat] = [
    lakes.FORMAT,
    imagefolder.FORMAT,
    folder.FORMAT,
    webdataset.FORMAT,
    annotation_files.FORMAT,
    caption_lists.FORMAT,
    tables.FORMAT,
]


def source_formats() -> tuple[SourceFormat, ...]:
    """Return all registered formats in matching order."""
    return tuple(_FORMATS)


def register_source(
    name: str,
    description: str,
    *,
    suffixes: Sequence[str] = (),
    matches: Callable[[str], bool] | None = None,
    has_columns: bool = False,
    has_query: bool = False,
    options: Sequence[str] = (),
    before: str | None = None,
) -> Callable[[Opener], Opener]:
    """Register the decorated function as the opener of a source format.

        @register_source("npz", "NumPy archives (.npz)", suffixes=[".npz"])
        def open_npz(paths: Sequence[str], options: SourceOptions) -> list[Source]: ...

    Args:
        name: short name of the format.
        description: what a user may pass, for messages.
        suffixes: endings of file names, such as ".npz". Files with these endings are also found inside a folder.
        matches: function that tells whether a path or URL is of this format; for folders and URLs.
        has_columns: whether `image_column`, `caption_columns` and `caption_template` apply.
        has_query: whether `query` applies.
        options: names of the further fields of `SourceOptions` that apply, such as "encoding".
        before: name of the format that this one takes precedence over; by default all others take precedence.

    Raises:
        ConfigError: the name is registered already, `before` is unknown, or there are neither suffixes nor `matches`.
    """
    names = [known.name for known in _FORMATS]
    if name in names:
        raise ConfigError(
            f"the source format {name!r} is registered already",
            found=", ".join(names),
            next_step="choose another name, or call unregister_source first",
        )
    if before is not None and before not in names:
        raise ConfigError(f"there is no source format {before!r}", allowed=", ".join(names))
    if not suffixes and matches is None:
        raise ConfigError(
            f"the source format {name!r} accepts no path", allowed="suffixes, a function `matches`, or both"
        )

    def register(opener: Opener) -> Opener:
        # Both read folders of images: a format that precedes one precedes the other.
        successor = imagefolder.FORMAT.name if before == folder.FORMAT.name else before
        position = len(_FORMATS) if successor is None else [known.name for known in _FORMATS].index(successor)
        lowered = tuple(suffix.lower() for suffix in suffixes)
        new = SourceFormat(
            name, description, opener, lowered, matches, None, has_columns, has_query, options=tuple(options)
        )
        _FORMATS.insert(position, new)
        return opener

    return register


def unregister_source(name: str) -> None:
    """Remove a format from the registry.

    Raises:
        ConfigError: there is no such format.
    """
    for known in _FORMATS:
        if known.name == name:
            _FORMATS.remove(known)
            return
    raise ConfigError(f"there is no source format {name!r}", allowed=", ".join(known.name for known in _FORMATS))
