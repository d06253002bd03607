"""Find the image files that a table names, however it writes their paths."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import TypeAlias
from urllib.parse import unquote

from lakeclip.ingestion.sources.record import Table
from lakeclip.lake.folder.source import read_file
from lakeclip.lake.images import image_suffixes, suffix_of

#: Lower-case names of folders in which data sets keep their images beside a table …
_IMAGE_FOLDERS = re.compile(
    r"(.*[_-])?(images?|imgs?|pictures?|photos?|pics?|jpe?gs?)\d{0,4}|flicke?r\d+k[_-]dataset|vg_100k(_2)?"
)
#: … and of those that hold the images of one split: used by tables with this name in theirs.
_SPLIT_FOLDERS = re.compile(r"(train|val|valid|validation|test|dev)\d{0,4}")
#: Lower-case names of folders that hold the tables of a data set, beside its images.
_TABLE_FOLDERS = re.compile(
    r"(.*[_-])?(annotations?|captions?|metadata|meta|labels?|texts?|tables?|splits?|jsons?|csvs?|karpathy)"
)
_DRIVE = re.compile(r"[A-Za-z]:[/\\]|\\\\")
#: Number of folders whose file names are in memory.
_LISTED_FOLDERS = 16
_SHOWN = 3
#: Number of rows whose values are tried as names of files, and their longest length.
_TRIED_ROWS = 20
_MAX_NAME = 1_000


class ImageFinder:
    """Finder of the image files that one table names.

    A path is relative to `root`. Without a root, it is relative to the folder of the table, or else to a folder of
    images in it (`images`, `photos`; `train2014` for a table with `train2014` in its name). For a table in a folder
    such as `annotations`, the folder above and the folders of images there follow.

    If no file has exactly this path, these are tried in turn: slashes for backslashes, without URL quotes; another
    case; an image suffix after it; another image suffix. A path from the root of a disk is also looked for by its last
    parts, because the table may come from another machine.

    Args:
        table: path of the table.
        root: folder that the paths are relative to.

    Attributes:
        other_suffixes: number of images that were read from a file with another suffix, by the two suffixes.
    """

    def __init__(self, table: str, root: str | None = None) -> None:
        self.other_suffixes: Counter[str] = Counter()
        self._table = os.path.abspath(table)
        self._root = os.path.abspath(root) if root is not None else None
        self._list = functools.lru_cache(_LISTED_FOLDERS)(_list_files)

    @functools.cached_property
    def folders(self) -> list[list[str]]:
        """The folders that a path may be relative to; those of a later group are used if it is in no earlier one."""
        if self._root is not None:
            return [[self._root]]
        folder = os.path.dirname(self._table)
        name = os.path.basename(self._table).lower()
        groups = [[folder], _image_folders(folder, name)]
        if _TABLE_FOLDERS.fullmatch(os.path.basename(folder).lower()):
            above = os.path.dirname(folder)
            groups += [[above], _image_folders(above, name)]
        return groups

    def read(self, name: str) -> bytes | str:
        """Return the bytes of an image file, or the reason why there are none."""
        paths = self.find(name)
        if len(paths) == 1:
            named, found = suffix_of(name.strip()), suffix_of(paths[0])
            if named != found and named in image_suffixes():
                self.other_suffixes[f"{named} → {found}"] += 1
            return read_file(paths[0])
        if paths:
            return f"image is ambiguous: {name[:200]} may be {' or '.join(paths[:_SHOWN])}"
        folders = [folder for group in self.folders for folder in group]
        shown = ", ".join(folders[:_SHOWN]) + (f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else "")
        return f"image not found: {name[:200]} (tried in {shown})"

    def notes(self) -> list[str]:
        """Describe which images were found by other names than the table has."""
        return [
            f"{count:,} images are named with another suffix than their files have: {suffixes}"
            for suffixes, count in self.other_suffixes.most_common()
        ]

    def has(self, name: str) -> bool:
        """Return whether exactly one image file has this name."""
        paths = self.find(name)
        return len(paths) == 1 and suffix_of(paths[0]) in image_suffixes()

    def find(self, name: str) -> list[str]:
        """Return the files that a name may mean: several if it is ambiguous, none if none exists."""
        name = name.strip().removeprefix("file://")
        matches: tuple[_Match, ...] = (
            _exactly,
            self._in_another_case,
            self._with_suffix,
            self._with_another_suffix,
        )
        for match in matches if name and "\0" not in name else ():
            for variant in _variants(name):
                for tail in _tails(variant):
                    for group in self.folders:
                        found = [path for folder in group for path in match(os.path.join(folder, tail))]
                        if found:
                            return _distinct(found)
        return []

    def _in_another_case(self, path: str) -> list[str]:
        folder, name = os.path.split(path)
        return self._list(_existing_folder(folder)).by_name.get(_fold(name), [])

    def _with_suffix(self, path: str) -> list[str]:
        """Return the files with this name and an image suffix; those in another case only if there are no others."""
        folder, name = os.path.split(path)
        found = self._list(_existing_folder(folder)).by_stem.get(_fold(name), [])
        return [file for file in found if os.path.splitext(os.path.basename(file))[0] == name] or found

    def _with_another_suffix(self, path: str) -> list[str]:
        """Return the files with this name but another image suffix: `1.jpg` for `1.jpeg`."""
        stem, suffix = os.path.splitext(path)
        return self._with_suffix(stem) if suffix.lower() in image_suffixes() else []


def find_file_column(table: Table, images: ImageFinder) -> str | None:
    """Return the column that names image files which exist, by its values in some rows; None if there is none."""
    shares: dict[str, float] = {}
    rows = list(table.sample)[:_TRIED_ROWS]
    for name in table.columns:
        values = [str(row[name]) for row in rows if isinstance(row.get(name), (str, int, float)) and row[name] != ""]
        if values and all(len(value) < _MAX_NAME for value in values):
            shares[name] = sum(map(images.has, values)) / len(values)
    best = max(shares, key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] >= 0.5 else None


#: Function that returns the files that a path may mean.
_Match: TypeAlias = Callable[[str], list[str]]


def _existing_folder(path: str) -> str:
    """Return a folder, or the only one beside it whose name differs in case only: `Images` for `images`."""
    if os.path.isdir(path):
        return path
    parent, name = os.path.split(path)
    try:
        with os.scandir(parent) as entries:
            found = [entry.path for entry in entries if _fold(entry.name) == _fold(name) and entry.is_dir()]
    except (OSError, ValueError):
        return path
    return found[0] if len(found) == 1 else path


def _exactly(path: str) -> list[str]:
    return [path] if os.path.isfile(path) else []


class _Files:
    """The image files of one folder, by case-folded name and by case-folded stem."""

    def __init__(self) -> None:
        self.by_name: defaultdict[str, list[str]] = defaultdict(list)
        self.by_stem: defaultdict[str, list[str]] = defaultdict(list)


def _list_files(folder: str) -> _Files:
    files = _Files()
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if suffix_of(entry.name) in image_suffixes())
    except (OSError, ValueError):
        return files
    for name in names:
        path = os.path.join(folder, name)
        files.by_name[_fold(name)].append(path)
        files.by_stem[_fold(os.path.splitext(name)[0])].append(path)
    return files


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _distinct(paths: list[str]) -> list[str]:
    """Return the paths without those that lead to the same file as an earlier one."""
    return list({os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]


def _variants(name: str) -> list[str]:
    """Return a path as it is written, with slashes for backslashes, without URL quotes, and as an integer."""
    variants = [name]
    if "\\" in name:
        variants.append(name.replace("\\", "/"))
    if "%" in name:
        variants += [unquote(variant) for variant in variants]
    if not name.isascii():
        variants += [unicodedata.normalize(form, variant) for form in ("NFC", "NFD") for variant in variants]
    if re.fullmatch(r"\d+\.0", name):
        variants.append(name[:-2])  # a column of integers with gaps, written as fractions
    return list(dict.fromkeys(variants))


def _tails(name: str) -> list[str]:
    """Return a path and, if it starts at the root of a disk, its ends without the first parts, longest first."""
    if not (name.startswith("/") or _DRIVE.match(name)):
        return [name]
    parts = [part for part in _DRIVE.sub("", name, count=1).split("/") if part]
    return [name, *("/".join(parts[start:]) for start in range(len(parts)))]


def _image_folders(folder: str, table: str) -> list[str]:
    """Return the folders in one whose names say that they hold the images of a table; also the same name once more."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if _holds_images(entry.name.lower(), table))
    except OSError:
        return []
    found = [path for name in names if os.path.isdir(path := os.path.join(folder, name))]
    return found + [inner for path in found if os.path.isdir(inner := os.path.join(path, os.path.basename(path)))]


def _holds_images(folder: str, table: str) -> bool:
    if _SPLIT_FOLDERS.fullmatch(folder):
        return folder in table
    return _IMAGE_FOLDERS.fullmatch(folder) is not None
