"""Pair images with caption files by their stems, anywhere below one folder.

`foo/bar/image1.jpg` belongs to `mystery/folder/image1.txt`. If several files share a stem, those that are closest
together are paired (so `train/1.jpg` and `val/1.jpg` each get the `1.txt` beside them); files that remain ambiguous are
reported and excluded. Captions may also be in `image1.jpg.txt`, `image1.caption`, `image1.cap` or `image1.json`.
"""

from __future__ import annotations

import itertools
import os
import shlex
import sqlite3
import unicodedata
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from lakeclip.errors import OutputError, SourceError
from lakeclip.lake.folder.records import Collision, Rejected
from lakeclip.lake.folder.stems import CAPTION_SUFFIXES, JSON_SUFFIX, Pair, pair_stem
from lakeclip.lake.folder.walk import walk
from lakeclip.lake.images import image_suffixes, suffix_of


class Listing(NamedTuple):
    """The files of a folder, by name: none of them is opened."""

    pairs: list[Pair]
    rejected: list[Rejected]
    collisions: list[Collision]
    ignored: Counter[str]


def list_pairs(folder: str, *, all_images: bool = False) -> Listing:
    """Return the pairs below a folder as lists; see `Pairing`.

    Raises:
        SourceError: the folder does not exist, or contains no pairs.
    """
    pairing = Pairing(folder, all_images=all_images)
    return Listing(list(pairing.pairs()), list(pairing.rejected()), pairing.collisions, pairing.ignored)


class Pairing:
    """The pairs below a folder. Hidden files and folders are skipped; links are followed, once.

    File names are kept in a temporary database, because there may be millions. Only the folders' names, the collisions
    and the files of one stem are in memory.

    Attributes:
        size: number of pairs.
        collisions: stems shared by several images or caption files.
        ignored: suffix → number of files that are neither images nor captions.

    Args:
        folder: the folder.
        all_images: whether images without captions are pairs too.

    Raises:
        SourceError: the folder does not exist, or contains no pairs.
        OutputError: the temporary folder is full.
    """

    def __init__(self, folder: str, *, all_images: bool = False) -> None:
        if not os.path.isdir(folder):
            found = "a file" if os.path.exists(folder) else "it does not exist"
            raise SourceError(f"there is no folder {folder}", found=found)
        self.size = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self._folder = folder
        self._all_images = all_images
        self._folders: list[str] = []
        # Without a name SQLite uses a temporary file, once the names exceed its cache.
        self._names = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._names.close)
        try:
            self._names.executescript(_TABLES)
            self._find_pairs()
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot store the names of the files below {folder} in the temporary folder",
                found=str(error),
                next_step="set SQLITE_TMPDIR to a folder with more space",
            ) from None

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs, sorted by the images' paths."""
        for row in self._names.execute("select image, captions, details from pairs order by image, captions"):
            yield Pair(*map(_text, row))

    def rejected(self) -> Iterator[Rejected]:
        """Yield every image and caption file that is in no pair, with the reason."""
        for key, reason in self._names.execute("select key, reason from rejected order by position, number"):
            yield Rejected(_text(key), _text(reason))

    def _find_pairs(self) -> None:
        self._names.execute("begin")
        self._names.executemany("insert into files values (?, ?, ?, ?, ?)", self._files())
        images, captions, jsons = self._count(_IMAGE), self._count(_CAPTIONS), self._count(_JSON)
        if not images or not (captions or jsons or self._all_images):
            self.ignored.update({JSON_SUFFIX: jsons} if jsons else {})
            raise _no_pairs_error(self._folder, images, captions, self.ignored)
        for statement in _SHORTEN_STEMS:
            self._names.execute(statement)
        collisions: list[tuple[bytes, Collision]] = []
        self._names.executemany("insert into pairs values (?, ?, ?)", self._pair_stems(collisions))
        self.collisions = [collision for _, collision in sorted(collisions, key=lambda entry: entry[0])]
        if not self.size and not captions:
            raise _no_pairs_error(self._folder, images, captions, self.ignored)
        if not self.size:
            raise SourceError(
                f"no image in {self._folder} has captions",
                found=f"{images:,} images and {captions:,} caption files, such as "
                f"{self._first(_IMAGE)} and {self._first(_CAPTIONS)}; no two share a stem"
                + (" that no other file has" if self.collisions else ""),
                allowed="image1.jpg and image1.txt, anywhere below the folder",
            )
        self._names.execute("delete from files")
        self._names.execute("commit")

    def _pair_stems(self, collisions: list[tuple[bytes, Collision]]) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield the pairs, by stem; store rejected files in their table, and append collisions to the list."""
        rows = self._names.execute("select stem, kind, folder, name from files order by stem, kind, folder, name")
        for stem, group in itertools.groupby(rows, key=lambda row: row[0]):
            files = list(group)
            paths: tuple[list[str], list[str], list[str]] = ([], [], [])
            for _, kind, number, name in files:
                paths[kind].append(os.path.join(self._folders[number], _text(name)))
            found = pair_stem(_text(stem), *paths, all_images=self._all_images)
            self.ignored.update({JSON_SUFFIX: len(found.unused)} if found.unused else {})
            self.size += len(found.pairs)
            for pair in found.pairs:
                yield _bytes(pair.image), _bytes(pair.captions), _bytes(pair.details)
            if not found.rejected and not found.collisions:
                continue
            # Reports follow the order of the first file of each stem.
            position = b"%d %012d " % (files[0][1], files[0][2]) + files[0][3]
            self._names.executemany(
                "insert into rejected values (?, ?, ?, ?)",
                (
                    (position, number, _bytes(item.key), _bytes(item.reason))
                    for number, item in enumerate(found.rejected)
                ),
            )
            collisions += [(position, collision) for collision in found.collisions]

    def _files(self) -> Iterator[tuple[bytes, bytes | None, int, int, bytes]]:
        """Yield the stem, the stem of a stem such as `a.jpg`, kind, folder number and name of each file.

        Folders are numbered in order.
        """
        for relative, name in walk(self._folder):
            if not self._folders or self._folders[-1] != relative:
                self._folders.append(relative)
            suffix = suffix_of(name)
            if suffix in image_suffixes():
                kind = _IMAGE
            elif suffix in CAPTION_SUFFIXES:
                kind = _CAPTIONS
            elif suffix == JSON_SUFFIX:
                kind = _JSON
            else:
                self.ignored[suffix or "no suffix"] += 1
                continue
            # File systems differ in how they encode é; names that look the same must be equal.
            stem = unicodedata.normalize("NFC", os.path.splitext(name)[0])
            inner = os.path.splitext(stem)[0] if kind != _IMAGE and suffix_of(stem) in image_suffixes() else None
            yield _bytes(stem), None if inner is None else _bytes(inner), kind, len(self._folders) - 1, _bytes(name)

    def _count(self, kind: int) -> int:
        (count,) = self._names.execute("select count(*) from files where kind = ?", (kind,)).fetchone()
        assert isinstance(count, int)
        return count

    def _first(self, kind: int) -> str:
        number, name = self._names.execute(
            "select folder, name from files where kind = ? order by folder, name limit 1", (kind,)
        ).fetchone()
        return os.path.join(self._folders[number], _text(name))


_IMAGE, _CAPTIONS, _JSON = 0, 1, 2
#: Names are bytes, because file names need not be valid text; they sort as Python sorts the names.
_TABLES = """
pragma journal_mode = off;
pragma synchronous = off;
pragma temp_store = file;
pragma cache_size = -32000;
create table files (stem blob, inner_stem blob, kind integer, folder integer, name blob);
create table pairs (image blob, captions blob, details blob);
create table rejected (position blob, number integer, key blob, reason blob);
"""
#: `a.jpg.txt` belongs to `a.jpg`, unless there is an image `a.jpg.png`.
_SHORTEN_STEMS = (
    "create table image_stems as select distinct stem from files "
    "where kind = 0 and stem in (select stem from files where inner_stem is not null)",
    "update files set stem = inner_stem where inner_stem is not null and stem not in (select stem from image_stems)",
)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def _no_pairs_error(folder: str, images: int, captions: int, ignored: Counter[str]) -> SourceError:
    parts = [f"{images:,} images" if images else "", f"{captions:,} caption files" if captions else ""]
    parts += [f"{count:,} {suffix}" for suffix, count in ignored.most_common(5)]
    found = ", ".join(part for part in parts if part)
    if not found:
        return SourceError(f"the folder {folder} is empty", allowed="images and .txt captions that share a stem")
    if not images:
        return SourceError(
            f"the folder {folder} contains no images", found=found, allowed="images with a usual suffix, and captions"
        )
    return SourceError(
        f"the folder {folder} contains no captions",
        found=found,
        allowed="a .txt file for each image, with one caption per line; or names of folders that describe the images",
        next_step=f"lakeclip ingest --caption-template 'a photo of a {{folder}}' {shlex.quote(folder)} LAKE",
    )
