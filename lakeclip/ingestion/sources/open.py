"""Open sources: find the format of each path and let the format read it."""

from __future__ import annotations

import glob
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from braceexpand import braceexpand

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources import folder
from lakeclip.ingestion.sources.base import Source
from lakeclip.ingestion.sources.check_options import check_options, parse_delimiter
from lakeclip.ingestion.sources.files import FileSource, name_parts
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.ingestion.sources.registry import source_formats
from lakeclip.ingestion.sources.survey import count_pairs, survey, tables_beside_images_error
from lakeclip.lake import engine
from lakeclip.lake.folder.stems import CAPTION_SUFFIXES, JSON_SUFFIX
from lakeclip.lake.images import image_suffixes, suffix_of


class _Match(NamedTuple):
    """Paths of one format.

    Attributes:
        left_out: suffix → number of files beside them that are not read.
        folder: the folder whose files of this format they are, or "".
    """

    format: SourceFormat
    paths: Sequence[str]
    left_out: Counter[str]
    folder: str = ""


#: Option → flag, in the order of the checks.
_FLAGS = {
    "image_column": "--image-column",
    "caption_columns": "--caption-column",
    "caption_template": "--caption-template",
    "encoding": "--encoding",
    "delimiter": "--delimiter",
    "image_root": "--image-root",
}


def open_sources(
    names: Sequence[str],
    *,
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    query: str | None = None,
    caption_template: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    image_root: str | None = None,
) -> list[Source]:
    """Open folders, files, lakes and whatever else a registered format reads.

    The sources are in the order of their formats in the registry. All tar files together make one source, and so do all
    tables. No two parts of all these sources have the same name.

    Args:
        names: paths and URLs, with wildcards and ranges such as `train-{0000..0003}.tar`; a folder of tar files or
            tables stands for these files.
        image_column: column of tables and lakes with the images, their URLs or their file names; inferred by default.
        caption_column: column of tables and lakes, or key of JSON, with the captions; several give several captions per
            image; inferred by default.
        query: WHERE clause that selects the rows of lakes.
        caption_template: caption with names of columns or keys in braces.
        encoding: encoding of text files; detected by default.
        delimiter: separator of the columns of CSV files; detected by default.
        image_root: folder that file names of images are relative to; by default that of the table.

    Raises:
        ConfigError: an option has a value that no source could use.
        SourceError: no format reads one of the names, a source is empty, or an option is given that applies to none of
            the sources.
        LakeError: a lake cannot be opened, or the query is wrong.
    """
    columns = (caption_column,) if isinstance(caption_column, str) else tuple(caption_column or ())
    options = SourceOptions(
        (),
        image_column,
        columns,
        query,
        caption_template,
        encoding,
        delimiter,
        os.path.expanduser(image_root) if image_root is not None else None,
    )
    check_options(options)
    if delimiter is not None:
        options = replace(options, delimiter=parse_delimiter(delimiter))
    paths: defaultdict[str, list[str]] = defaultdict(list)
    ignored: defaultdict[str, Counter[str]] = defaultdict(Counter)
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        for match in _resolve(name, options):
            paths[match.format.name] += match.paths
            ignored[match.format.name].update(match.left_out)
            folders[match.format.name] += [match.folder] if match.folder else []
    formats = [known for known in source_formats() if paths[known.name]]
    if not formats:
        raise SourceError("no source was given", allowed=_allowed())
    if query is not None:
        for known in formats:
            if not known.has_query:
                raise SourceError(
                    f"a query selects rows of a lake, but {paths[known.name][0]} is not one",
                    next_step="ingest it without a query, then train with one, or ingest that lake with one",
                )
    for option, flag in _FLAGS.items():
        if getattr(options, option) and not any(known.applies(option) for known in formats):
            raise SourceError(
                f"{flag} does not apply to {paths[formats[0].name][0]}",
                found=formats[0].description,
                allowed=f"{flag} applies to "
                + _list([known.description for known in source_formats() if known.applies(option)], "and"),
                next_step=f"omit {flag}",
            )
    all_paths = [path for known in formats for path in paths[known.name]]
    parts = dict(zip(all_paths, name_parts(all_paths), strict=True))
    sources: list[Source] = []
    for known in formats:
        opened = list(
            known.open(paths[known.name], replace(options, parts=[parts[path] for path in paths[known.name]]))
        )
        if opened:
            if isinstance(opened[0], FileSource):
                opened[0].leave_out_files(ignored[known.name])
                opened[0].folders = folders[known.name]
            else:
                opened[0].ignored.update(ignored[known.name])
        sources += opened
    return sources


def expand(pattern: str) -> list[str]:
    """Expand braces (`{0000..0003}`, `{a,b}`) and wildcards in a path, in order.

    Raises:
        SourceError: the wildcards match nothing.
    """
    paths: list[str] = []
    for path in _expand_braces(pattern):
        # The path of a lake may end in @VERSION.
        if not glob.has_magic(path) or os.path.exists(path) or engine.local_folder(path).exists():
            paths.append(path)
        elif matches := sorted(glob.glob(path, recursive=True)):
            paths += matches
        else:
            raise SourceError(f"no file matches {path}", next_step="quote the pattern, or check the path")
    return paths


def _expand_braces(pattern: str) -> list[str]:
    if os.path.exists(pattern):
        return [pattern]
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:  # unbalanced braces
        return [pattern]


def _resolve(name: str, options: SourceOptions) -> Iterator[_Match]:
    """Yield the paths that a name given by the user stands for."""
    if "://" in name or name.startswith("pipe:"):
        for known in source_formats():
            if known.matches is not None and known.matches(name):
                yield _Match(known, [name], Counter())
                return
        raise SourceError(f"cannot read {name}", allowed=_allowed())
    for path in expand(os.path.expanduser(name)):
        yield _match_path(path, options)


def _match_path(path: str, options: SourceOptions) -> _Match:
    for known in source_formats():
        if known.accepts(path):
            return _match_folder(path, options) if known is folder.FORMAT else _Match(known, [path], Counter())
    if os.path.isdir(path):
        return _match_folder(path, options)
    raise SourceError(
        f"cannot ingest {path}",
        found="a file of an unknown format" if os.path.exists(path) else "nothing at this path",
        allowed=_allowed(),
        next_step=_next_step(path),
    )


def _next_step(path: str) -> str:
    """Return what to do with a file that no format reads."""
    if not os.path.isfile(path):
        return "check the path"
    suffix = suffix_of(path)
    if suffix in image_suffixes() or suffix in (*CAPTION_SUFFIXES, JSON_SUFFIX):
        return (
            f"give the folder of images and captions: lakeclip ingest {shlex.quote(os.path.dirname(path) or '.')} LAKE"
        )
    if suffix in (".zip", ".rar", ".7z"):
        return "unpack it, and give the folder"
    return "convert it into one of these, or write a reader with register_source"


def _match_folder(path: str, options: SourceOptions) -> _Match:
    """Match a folder that no format reads as a whole: as images with captions, or as the files in it of one format.

    The first format that reads any file is taken. The other files are left out and counted: img2dataset, for example,
    writes 00000.parquet about the samples in 00000.tar.
    """
    contents = survey(path)
    first = next((known for known in source_formats() if contents.files[known.name]), None)
    if first is None:
        return _Match(folder.FORMAT, [path], Counter())  # raises an error that says what is missing
    files = sorted(contents.files[first.name])
    chosen = list(first.choose_files(files) if first.choose_files is not None else files)
    if contents.num_images:
        num_pairs = count_pairs(path)
        names_images = first.names_images(chosen)
        if num_pairs > (0 if names_images else len(chosen)) or (names_images and options.caption_template is not None):
            return _Match(folder.FORMAT, [path], Counter())
        if names_images:
            raise tables_beside_images_error(path, contents, options)
    taken = set(chosen)
    others = [file for known in source_formats() for file in contents.files[known.name] if file not in taken]
    left_out = contents.others + Counter(suffix_of(file) for file in others)
    return _Match(first, chosen, left_out, path)


def _allowed() -> str:
    return _list([known.description for known in source_formats()], "or")


def _list(items: Sequence[str], conjunction: str) -> str:
    *others, last = items
    return f"{', '.join(others)}, {conjunction} {last}" if others else last
