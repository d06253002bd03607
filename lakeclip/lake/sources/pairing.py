"""Which caption file belongs to which image, in a folder of pairs: by their stems, anywhere below one parent.

`foo/bar/image1.jpg` belongs to `mystery/folder/image1.txt`. Where several files share a stem, the pair that lies
closest together wins (so `train/1.jpg` and `val/1.jpg` each find the `1.txt` beside them); what stays ambiguous is
named and left out.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from lakeclip.errors import SourceError
from lakeclip.lake.sources.base import Collision, Rejected
from lakeclip.lake.sources.images import image_suffixes, suffix_of

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
    """Find the pairs below a folder. Hidden files and folders are skipped; links are followed, once.

    Raises:
        SourceError: there is no such folder, or nothing in it can become a pair; it says what was found.
    """
    if not os.path.isdir(folder):
        raise SourceError(f"there is no folder {folder}", found="a file" if os.path.exists(folder) else "nothing there")
    images: defaultdict[str, list[str]] = defaultdict(list)
    captions: defaultdict[str, list[str]] = defaultdict(list)
    ignored: Counter[str] = Counter()
    for path in _walk(folder):
        suffix = suffix_of(path)
        # File systems differ in how they spell é; names that look the same are the same.
        stem = unicodedata.normalize("NFC", os.path.splitext(os.path.basename(path))[0])
        if suffix in image_suffixes():
            images[stem].append(path)
        elif suffix == CAPTION_SUFFIX:
            captions[stem].append(path)
        else:
            ignored[suffix or "no suffix"] += 1
    if not images or not captions:
        raise _nothing_to_pair(folder, images, captions, ignored)
    listing = Listing([], [], [], ignored)
    for stem in dict.fromkeys([*images, *captions]):
        _pair_stem(stem, images.get(stem, []), captions.get(stem, []), listing)
    if not listing.pairs:
        raise SourceError(
            f"no image in {folder} has captions",
            found=f"{_count(images):,} images and {_count(captions):,} caption files, such as "
            f"{next(iter(images.values()))[0]} and {next(iter(captions.values()))[0]}; no two share a stem"
            + (" that is theirs alone" if listing.collisions else ""),
            allowed="image1.jpg and image1.txt, anywhere below the folder",
        )
    listing.pairs.sort()
    return listing


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


def _walk(folder: str) -> Iterator[str]:
    """Paths of the files below, relative; sorted, so that the same folder always gives the same rows."""
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        relative = waiting.pop()
        here = os.path.join(folder, relative) if relative else folder
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(f"cannot read the folder {here}", found=error.strerror or str(error)) from None
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(relative, entry.name)
            if entry.is_dir():
                folders.append(path)
            else:
                yield path
        waiting += reversed(folders)


def _nothing_to_pair(
    folder: str, images: dict[str, list[str]], captions: dict[str, list[str]], ignored: Counter[str]
) -> SourceError:
    parts = [f"{_count(images):,} images" if images else "", f"{_count(captions):,} caption files" if captions else ""]
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


def _count(files: dict[str, list[str]]) -> int:
    return sum(map(len, files.values()))
