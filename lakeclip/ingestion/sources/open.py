"""What kind of source a name stands for: a folder of pairs, tars, tables, or another lake."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from lakeclip.errors import SourceError
from lakeclip.lake.sources.base import Source
from lakeclip.lake.sources.files import name_parts
from lakeclip.lake.sources.folder import FolderPairs
from lakeclip.lake.sources.images import image_suffixes, suffix_of
from lakeclip.lake.sources.lakes import LakeRows, OldLakeRows, is_lake, is_old_lake
from lakeclip.lake.sources.tables import PARQUET_SUFFIXES, Tables, is_table
from lakeclip.lake.sources.webdataset import Shards, expand, is_tar

_ALLOWED = (
    "a folder of images and .txt captions, WebDataset .tar files, tables (.parquet, .csv, .tsv, .jsonl), "
    "or another lake: its folder, s3://…, gs://…, az://…, hub://…, al://…"
)


class _Found(NamedTuple):
    """What the names stand for, by kind.

    Attributes:
        ignored: suffixes of files that lie beside them and are not read.
    """

    lakes: list[str]
    folders: list[str]
    tars: list[str]
    tables: list[str]
    ignored: list[str]


def open_sources(
    names: Sequence[str],
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    query: str | None = None,
) -> list[Source]:
    """Find out what kind of source each name is.

    All tars together make one source, and so do all tables. The parts of all of them have names that differ.

    Args:
        names: folders of pairs, tar files, tables, folders of either, lakes; wildcards and ranges such as
            `train-{0000..0003}.tar` stand for files.
        image_column: what holds the images of tables and lakes, if not what the columns' names suggest: bytes,
            addresses, or names of files.
        caption_column: what holds their captions, likewise.
        query: for lakes: take the rows for which this WHERE clause holds.

    Raises:
        SourceError: a name stands for none of these, there is nothing in it, or a query or column is given for what
            has none.
        LakeError: a lake cannot be opened, or the query is wrong.
    """
    found = _Found([], [], [], [], [])
    for name in names:
        _sort(name, found)
    paths = [*found.lakes, *found.folders, *found.tars, *found.tables]
    if not paths:
        raise SourceError("no source was given", allowed=_ALLOWED)
    others = [*found.folders, *found.tars]
    if query is not None and (others or found.tables):
        raise SourceError(
            f"a query chooses rows of a lake; {[*others, *found.tables][0]} is none",
            next_step="ingest it without a query, then train with one, or ingest that lake with one",
        )
    if (image_column is not None or caption_column is not None) and not (found.lakes or found.tables):
        raise SourceError(
            f"{others[0]} has no columns to choose from", allowed="--image-column and --caption-column are for tables"
        )
    parts = dict(zip(paths, name_parts(paths), strict=True))
    opened: list[Source] = []
    for lake in found.lakes:
        kind = OldLakeRows if is_old_lake(lake) else LakeRows
        opened.append(kind(lake, parts[lake], query, image_column=image_column, caption_column=caption_column))
    opened += [FolderPairs(folder, parts[folder]) for folder in found.folders]
    if tars := found.tars:
        shards = Shards(_name(tars), tars, [parts[path] for path in tars])
        shards.ignored.update(found.ignored)
        opened.append(shards)
    if tables := found.tables:
        own = [parts[path] for path in tables]
        opened.append(
            Tables(_name(tables), tables, own, image_column=image_column, caption_column=caption_column),
        )
    return opened


def _sort(name: str, found: _Found) -> None:
    """Put what a name stands for where it belongs."""
    if is_lake(name):
        found.lakes.append(name)
        return
    if "://" in name or name.startswith("pipe:"):
        raise SourceError(f"cannot read {name}", allowed=_ALLOWED)
    for path in expand(os.path.expanduser(name)):
        if is_lake(path) or is_old_lake(path):
            found.lakes.append(path)
        elif os.path.isdir(path):
            _sort_folder(path, found)
        elif is_tar(path):
            found.tars.append(path)
        elif is_table(path):
            found.tables.append(path)
        else:
            raise SourceError(
                f"cannot ingest {path}",
                found="a file that is no tar and no table" if os.path.exists(path) else "nothing there",
                allowed=_ALLOWED,
            )


def _sort_folder(folder: str, found: _Found) -> None:
    """A folder with images is one of pairs; else one with tars holds shards, and one with tables is those.

    Tables beside tars tell of the tars (img2dataset writes 00000.tar and 00000.parquet), and text tables beside
    Parquet files of those: they are not read.
    """
    tars: list[str] = []
    parquets: list[str] = []
    texts: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(parent, name)
            if name.startswith("."):
                continue
            if suffix_of(name) in image_suffixes():
                found.folders.append(folder)
                return
            if is_tar(name):
                tars.append(path)
            elif name.lower().endswith(PARQUET_SUFFIXES):
                parquets.append(path)
            elif is_table(name):
                texts.append(path)
    if tars:
        found.tars.extend(sorted(tars))
        found.ignored.extend(suffix_of(path) for path in [*parquets, *texts])
    elif parquets or texts:
        found.tables.extend(sorted(parquets or texts))
    else:
        found.folders.append(folder)


def _name(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}"
