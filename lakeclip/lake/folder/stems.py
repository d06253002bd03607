"""Pair the images, caption files and JSON files that share one stem."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lakeclip.lake.folder.records import Collision, Rejected

#: Suffixes of caption files; the first of these is used if an image has several.
CAPTION_SUFFIXES = (".txt", ".caption", ".cap")
JSON_SUFFIX = ".json"


class Pair(NamedTuple):
    """Paths of an image and its captions, relative to the folder.

    Attributes:
        image: the image.
        captions: the file with its captions: a text, or else a JSON file; "" if there is none.
        details: a JSON file beside the text; "" if there is none.
    """

    image: str
    captions: str
    details: str = ""


class StemPairs(NamedTuple):
    """Outcome of the pairing of the files of one stem.

    Attributes:
        pairs: the pairs.
        rejected: images and caption files that are in no pair.
        collisions: one entry if several images or caption files share the stem.
        unused: JSON files that are in no pair.
    """

    pairs: list[Pair]
    rejected: list[Rejected]
    collisions: list[Collision]
    unused: list[str]


class Files(NamedTuple):
    """Images and caption files of one stem."""

    images: list[str]
    captions: list[str]


def pair_stem(
    stem: str, images: Sequence[str], captions: Sequence[str], jsons: Sequence[str] = (), *, all_images: bool = False
) -> StemPairs:
    """Pair the files of one stem.

    A caption file in the folder of an image belongs to it if its name is the image's with a suffix more (`a.jpg.txt`).
    All others are paired with what is closest. A JSON file is used like a caption file for images that have none, and
    gives further values to images that have one beside it.

    Args:
        stem: the stem, for reports.
        images: paths of images, relative to one folder.
        captions: paths of caption files.
        jsons: paths of JSON files.
        all_images: whether images without captions become pairs too.
    """
    pairs, rest, rejected = _pair_own(images, captions)
    ambiguous: list[Files] = []
    if len(rest.images) == 1 and len(rest.captions) == 1:
        pairs.append(Pair(rest.images[0], rest.captions[0]))
        unpaired = Files([], [])
    else:
        closest, unpaired, ambiguous = pair_closest(rest.images, rest.captions)
        pairs += closest
    unused = list(jsons)
    if jsons:
        by_json, unpaired, unused = _pair_json(pairs, unpaired, jsons, images)
        pairs += by_json
    has_captions = bool(captions)
    if all_images:
        alone = [*unpaired.images, *(path for group in ambiguous for path in group.images)]
        pairs += [Pair(image, "") for image in alone]
        unpaired = Files([], [*unpaired.captions, *(path for group in ambiguous for path in group.captions)])
        ambiguous = []
    rejected += _reject_ambiguous(ambiguous)
    rival = pairs[0].image if pairs else ambiguous[0].images[0] if ambiguous else ""
    for paths, reason in ((unpaired.images, "no caption file"), (unpaired.captions, "caption file without image")):
        for path in paths:
            rejected.append(Rejected(path, f"{reason} of its own: {rival} shares its stem" if rival else reason))
    collisions = []
    if (len(rest.images) > 1 and (has_captions or not all_images)) or len(rest.captions) > 1:
        num_pairs = sum(pair.image in rest.images for pair in pairs)
        num_captioned = sum(pair.image in rest.images and pair.captions in rest.captions for pair in pairs)
        left_out = len(rest.images) + len(rest.captions) - num_pairs - num_captioned
        outcomes = [f"{num_pairs} pairs found by folder"] * bool(num_pairs) + [f"{left_out} left out"] * bool(left_out)
        collisions.append(Collision(stem, (*images, *captions), ", ".join(outcomes)))
    return StemPairs(pairs, rejected, collisions, unused)


def _pair_own(images: Sequence[str], captions: Sequence[str]) -> tuple[list[Pair], Files, list[Rejected]]:
    """Pair images with the caption files that have their whole names, and drop all but one caption file of a name.

    Returns:
        The pairs; the other files; caption files that are not used because another one of that image is.
    """
    if len(captions) < 2 and not any(_is_double(path) for path in captions):
        return [], Files(list(images), list(captions)), []
    rejected: list[Rejected] = []
    chosen: dict[str, str] = {}
    rest: list[str] = []
    for path in sorted(captions, key=lambda path: (_rank(path), path)):
        target = _target(path)
        if target not in chosen:
            chosen[target] = path
        elif _rank(chosen[target]) != _rank(path):
            rejected.append(Rejected(path, f"another caption file is used: {chosen[target]}"))
        else:
            rest.append(path)  # a.txt and a.TXT: neither is preferred
    pairs: list[Pair] = []
    in_folder = _count_by_folder(images)
    images_left = []
    for image in images:
        own = chosen.get(_key(image))
        plain = chosen.get(_key(os.path.splitext(image)[0]))
        if own is None:
            images_left.append(image)
        elif plain is not None and in_folder[os.path.dirname(image)] == 1:
            rejected.append(Rejected(own, f"another caption file is used: {plain}"))
            del chosen[_key(image)]
            images_left.append(image)
        else:
            pairs.append(Pair(image, own))
            del chosen[_key(image)]
    order = {path: number for number, path in enumerate(captions)}
    left = sorted([*chosen.values(), *rest], key=order.__getitem__)
    return pairs, Files(images_left, left), rejected


def _pair_json(
    pairs: list[Pair], unpaired: Files, jsons: Sequence[str], images: Sequence[str]
) -> tuple[list[Pair], Files, list[str]]:
    """Add the JSON files beside images to their pairs, in place, and pair the others with images without captions.

    Returns:
        The new pairs; the files that are still without a partner; the JSON files that are not used.
    """
    by_target = {_target(path): path for path in jsons}
    in_folder = _count_by_folder(images)

    def own(image: str) -> str | None:
        plain = os.path.splitext(image)[0] if in_folder[os.path.dirname(image)] == 1 else None
        return by_target.pop(_key(image), None) or (by_target.pop(_key(plain), None) if plain else None)

    for number, pair in enumerate(pairs):
        beside = own(pair.image) or by_target.pop(_target(pair.captions), None)
        if beside is not None:
            pairs[number] = pair._replace(details=beside)
    found = [Pair(image, path) for image in unpaired.images if (path := own(image)) is not None]
    taken = {pair.image for pair in found}
    left = [image for image in unpaired.images if image not in taken]
    closest, _, _ = pair_closest(left, list(by_target.values()))
    closest_images = {pair.image for pair in closest}
    used = {path for pair in (*pairs, *found, *closest) for path in (pair.captions, pair.details)}
    images_left = [image for image in left if image not in closest_images]
    return [*found, *closest], Files(images_left, unpaired.captions), [path for path in jsons if path not in used]


def _reject_ambiguous(groups: Iterable[Files]) -> list[Rejected]:
    rejected = []
    for group in groups:
        for paths, others in ((group.images, group.captions), (group.captions, group.images)):
            for path in paths:
                other = next((rival for rival in paths[:2] if rival != path), others[0])
                rejected.append(Rejected(path, f"name is not unique: {other} has it too"))
    return rejected


def pair_closest(images: Sequence[str], captions: Sequence[str]) -> tuple[list[Pair], Files, list[Files]]:
    """Pair files of one stem, deepest folder first: if one image and one caption file are left in it, they are a pair.

    Returns:
        The pairs; the files without a partner; groups in which the pairing is ambiguous.
    """
    remaining: dict[str, Files] = {}
    for which, paths in enumerate((images, captions)):
        for path in paths:
            folder = os.path.dirname(path)
            remaining.setdefault(folder, Files([], []))[which].append(path)
            while folder:
                folder = os.path.dirname(folder)
                remaining.setdefault(folder, Files([], []))
    pairs: list[Pair] = []
    ambiguous: list[Files] = []
    for folder in sorted(remaining, key=lambda name: (-len(name.split(os.sep)) if name else 0, name)):
        files = remaining[folder]
        if len(files.images) == 1 and len(files.captions) == 1:
            pairs.append(Pair(files.images[0], files.captions[0]))
        elif files.images and files.captions:
            ambiguous.append(files)
        elif folder:
            parent = remaining[os.path.dirname(folder)]
            parent.images.extend(files.images)
            parent.captions.extend(files.captions)
        else:
            return pairs, files, ambiguous
    return pairs, Files([], []), ambiguous


def _target(path: str) -> str:
    """Return the path that a caption file belongs to: its own without the last suffix."""
    return _key(os.path.splitext(path)[0])


def _is_double(path: str) -> bool:
    """Return whether a name has two suffixes, as `a.jpg.txt` has."""
    return "." in os.path.splitext(os.path.basename(path))[0][1:]


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _rank(path: str) -> int:
    suffix = os.path.splitext(path)[1].lower()
    return CAPTION_SUFFIXES.index(suffix) if suffix in CAPTION_SUFFIXES else len(CAPTION_SUFFIXES)


def _count_by_folder(paths: Iterable[str]) -> defaultdict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for path in paths:
        counts[os.path.dirname(path)] += 1
    return counts
