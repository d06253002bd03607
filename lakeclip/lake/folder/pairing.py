"""Which caption file belongs to which image, in a folder of pairs: by their stems, anywhere below one parent.

`foo/bar/image1.jpg` belongs to `mystery/folder/image1.txt`. Where several files share a stem, the pair that lies
closest together wins (so `train/1.jpg` and `val/1.jpg` each find the `1.txt` beside them); what stays ambiguous is
named and left out.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import unicodedata
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from lakeclip.errors import OutputError, SourceError
from lakeclip.lake.sources.base import Collision, Rejected
from lakeclip.lake.sources.images import image_suffixes, suffix_of
from lakeclip.lake.sources.walk import walk

CAPTION_SUFFIX = ".txt"


class Pair(NamedTuple):
    """Paths of an image and its captions, relative to the folder."""

    image: str
    captions: str


class Listing(NamedTuple):
    """What a folder holds, by name alone: no file has been opened."""

    pairs: list[Pair]
    rejected: list[Rejected]
    collisions: list[Collision]
    ignored: Counter[str]


def list_pairs(folder: str) -> Listing:
    """Find the pairs below a folder, all at once: see `Pairing`.

    Raises:
        SourceError: there is no such folder, or nothing in it can become a pair; it says what was found.
    """
    pairing = Pairing(folder)
    return Listing(list(pairing.pairs()), list(pairing.rejected()), pairing.collisions, pairing.ignored)


class Pairing:
    """The pairs below a folder. Hidden files and folders are skipped; links are followed, once.

    The names are kept in a file that goes when this object does, not in memory: there may be millions. What stays in
    memory are the folders' names, the collisions, and the files that share one stem.

    Attributes:
        size: how many pairs there are.
        collisions: stems that several images or caption files have.
        ignored: suffixes of files that are neither, and how many have them.

    Raises:
        SourceError: there is no such folder, or nothing in it can become a pair; it says what was found.
        OutputError: the temporary folder is full.
    """

    def __init__(self, folder: str) -> None:
        if not os.path.isdir(folder):
            found = "a file" if os.path.exists(folder) else "nothing there"
            raise SourceError(f"there is no folder {folder}", found=found)
        self.size = 0
        self.collisions: list[Collision] = []
        self.ignored: Counter[str] = Counter()
        self._folder = folder
        self._folders: list[str] = []
        # No name: SQLite makes a temporary file, once the names outgrow its cache.
        self._names = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._names.close)
        try:
            self._names.executescript(_TABLES)
            self._find()
        except sqlite3.Error as error:
            raise OutputError(
                f"the names of the files below {folder} cannot be kept in the temporary folder",
                found=str(error),
                next_step="set SQLITE_TMPDIR to a folder with more room",
            ) from None

    def pairs(self) -> Iterator[Pair]:
        """The pairs, by their images' paths."""
        for image, captions in self._names.execute("select image, captions from pairs order by image, captions"):
            yield Pair(_text(image), _text(captions))

    def rejected(self) -> Iterator[Rejected]:
        """Every image and caption file that is in no pair, and why."""
        for key, reason in self._names.execute("select key, reason from rejected order by place, number"):
            yield Rejected(_text(key), _text(reason))

    def _find(self) -> None:
        self._names.execute("begin")
        self._names.executemany("insert into files values (?, ?, ?, ?)", self._files())
        images, captions = self._count(_IMAGE), self._count(_CAPTIONS)
        if not images or not captions:
            raise _nothing_to_pair(self._folder, images, captions, self.ignored)
        collisions: list[tuple[bytes, Collision]] = []
        self._names.executemany("insert into pairs values (?, ?)", self._paired(collisions))
        self.collisions = [collision for _, collision in sorted(collisions, key=lambda entry: entry[0])]
        if not self.size:
            raise SourceError(
                f"no image in {self._folder} has captions",
                found=f"{images:,} images and {captions:,} caption files, such as "
                f"{self._first(_IMAGE)} and {self._first(_CAPTIONS)}; no two share a stem"
                + (" that is theirs alone" if self.collisions else ""),
                allowed="image1.jpg and image1.txt, anywhere below the folder",
            )
        self._names.execute("delete from files")
        self._names.execute("commit")

    def _paired(self, collisions: list[tuple[bytes, Collision]]) -> Iterator[tuple[bytes, bytes]]:
        """The pairs, by stem. What is rejected goes into its table, the collisions where they are wanted."""
        rows = self._names.execute("select stem, kind, folder, name from files order by stem, kind, folder, name")
        for stem, group in itertools.groupby(rows, key=lambda row: row[0]):
            files = list(group)
            paths: tuple[list[str], list[str]] = ([], [])
            for _, kind, number, name in files:
                paths[kind].append(os.path.join(self._folders[number], _text(name)))
            listing = Listing([], [], [], self.ignored)
            _pair_stem(_text(stem), *paths, listing)
            self.size += len(listing.pairs)
            for pair in listing.pairs:
                yield _bytes(pair.image), _bytes(pair.captions)
            if not listing.rejected and not listing.collisions:
                continue
            # Where the first file of the stem stands in the folder says where what is said of the stem does.
            place = b"%d %012d " % (files[0][1], files[0][2]) + files[0][3]
            self._names.executemany(
                "insert into rejected values (?, ?, ?, ?)",
                (
                    (place, number, _bytes(item.key), _bytes(item.reason))
                    for number, item in enumerate(listing.rejected)
                ),
            )
            collisions += [(place, collision) for collision in listing.collisions]

    def _files(self) -> Iterator[tuple[bytes, int, int, bytes]]:
        """Stem, kind, number of the folder and name of each file. Folders are numbered in order."""
        for relative, name in walk(self._folder):
            if not self._folders or self._folders[-1] != relative:
                self._folders.append(relative)
            suffix = suffix_of(name)
            if suffix in image_suffixes():
                kind = _IMAGE
            elif suffix == CAPTION_SUFFIX:
                kind = _CAPTIONS
            else:
                self.ignored[suffix or "no suffix"] += 1
                continue
            # File systems differ in how they spell é; names that look the same are the same.
            stem = unicodedata.normalize("NFC", os.path.splitext(name)[0])
            yield _bytes(stem), kind, len(self._folders) - 1, _bytes(name)

    def _count(self, kind: int) -> int:
        (count,) = self._names.execute("select count(*) from files where kind = ?", (kind,)).fetchone()
        assert isinstance(count, int)
        return count

    def _first(self, kind: int) -> str:
        number, name = self._names.execute(
            "select folder, name from files where kind = ? order by folder, name limit 1", (kind,)
        ).fetchone()
        return os.path.join(self._folders[number], _text(name))


_IMAGE, _CAPTIONS = 0, 1
#: Names are kept as bytes, for those of files need not be text; these sort as Python sorts the names.
_TABLES = """
pragma journal_mode = off;
pragma synchronous = off;
pragma temp_store = file;
pragma cache_size = -32000;
create table files (stem blob, kind integer, folder integer, name blob);
create table pairs (image blob, captions blob);
create table rejected (place blob, number integer, key blob, reason blob);
"""


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def _pair_stem(stem: str, images: list[str], captions: list[str], listing: Listing) -> None:
    if len(images) == 1 and len(captions) == 1:
        listing.pairs.append(Pair(images[0], captions[0]))
        return
    pairs, lone, clashes = _closest(images, captions)
    listing.pairs.extend(pairs)
    for group in clashes:
        for paths, others in ((group.images, group.captions), (group.captions, group.images)):
            for path in paths:
                other = next((rival for rival in paths[:2] if rival != path), others[0])
                listing.rejected.append(Rejected(path, f"name is not unique: {other} claims it too"))
    rival = pairs[0].image if pairs else clashes[0].images[0] if clashes else ""
    for paths, reason in ((lone.images, "no caption file"), (lone.captions, "caption file without image")):
        for path in paths:
            listing.rejected.append(
                Rejected(path, f"{reason} of its own: {rival} shares its stem" if rival else reason)
            )
    if len(images) > 1 or len(captions) > 1:
        left_out = len(images) + len(captions) - 2 * len(pairs)
        outcomes = [f"{len(pairs)} pairs found by folder"] * bool(pairs) + [f"{left_out} left out"] * bool(left_out)
        listing.collisions.append(Collision(stem, tuple(images + captions), ", ".join(outcomes)))


class _Files(NamedTuple):
    """Images and caption files of one stem in one place."""

    images: list[str]
    captions: list[str]


def _closest(images: list[str], captions: list[str]) -> tuple[list[Pair], _Files, list[_Files]]:
    """Pair files of one stem, deepest folder first: a folder with one image and one caption file left makes a pair.

    Returns:
        The pairs; files that found no partner; groups in which any could be any other's.
    """
    left: dict[str, _Files] = {}
    for which, paths in enumerate((images, captions)):
        for path in paths:
            folder = os.path.dirname(path)
            left.setdefault(folder, _Files([], []))[which].append(path)
            while folder:
                folder = os.path.dirname(folder)
                left.setdefault(folder, _Files([], []))
    pairs: list[Pair] = []
    clashes: list[_Files] = []
    for folder in sorted(left, key=lambda name: (-len(name.split(os.sep)) if name else 0, name)):
        here = left[folder]
        if len(here.images) == 1 and len(here.captions) == 1:
            pairs.append(Pair(here.images[0], here.captions[0]))
        elif here.images and here.captions:
            clashes.append(here)
        elif folder:
            above = left[os.path.dirname(folder)]
            above.images.extend(here.images)
            above.captions.extend(here.captions)
        else:
            return pairs, here, clashes
    return pairs, _Files([], []), clashes


def _nothing_to_pair(folder: str, images: int, captions: int, ignored: Counter[str]) -> SourceError:
    parts = [f"{images:,} images" if images else "", f"{captions:,} caption files" if captions else ""]
    parts += [f"{count:,} {suffix}" for suffix, count in ignored.most_common(5)]
    found = ", ".join(part for part in parts if part)
    if not found:
        return SourceError(f"the folder {folder} is empty", allowed="images and .txt captions that share a stem")
    missing = "images" if not images else "captions"
    return SourceError(
        f"the folder {folder} holds no {missing}",
        found=found,
        allowed="images of any usual suffix" if missing == "images" else "a .txt beside each image, one caption a line",
    )
