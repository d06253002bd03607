"""Survey of a folder: its files by format, and the command that reads it."""

from __future__ import annotations

import os
import shlex
from collections import Counter, defaultdict
from typing import NamedTuple

from lakeclip.errors import LakeclipError, SourceError
from lakeclip.ingestion.sources.folder import files_below
from lakeclip.ingestion.sources.format import SourceFormat, SourceOptions
from lakeclip.ingestion.sources.registry import source_formats
from lakeclip.lake.folder.pairing import Pairing
from lakeclip.lake.images import image_suffixes, suffix_of

#: Number of files whose content decides on their format.
_MAX_SNIFFED = 50
#: Number of tables that are opened to see whether they can be read.
_MAX_TRIED = 12
_SHOWN = 3


class Contents(NamedTuple):
    """Files below a folder.

    Attributes:
        files: name of a format → files that it reads, by their suffixes.
        num_images: number of images.
        others: suffix → number of files that no format reads by itself, images among them.
    """

    files: defaultdict[str, list[str]]
    num_images: int
    others: Counter[str]


def survey(folder: str) -> Contents:
    """Return what a folder holds; hidden files are no part of it."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    others: Counter[str] = Counter()
    num_images = num_sniffed = 0
    formats = source_formats()
    for file in files_below(folder):
        lowered, suffix = file.lower(), suffix_of(file)
        known = None
        for candidate in formats:
            if candidate.has_suffix(file):
                known = candidate
            elif candidate.sniffed and lowered.endswith(candidate.sniffed) and num_sniffed < _MAX_SNIFFED:
                num_sniffed += 1
                known = candidate if candidate.accepts(file) else None
            if known is not None:
                break
        if known is not None:
            files[known.name].append(file)
        else:
            others[suffix or "no suffix"] += 1
            num_images += suffix in image_suffixes()
    return Contents(files, num_images, others)


def count_pairs(folder: str) -> int:
    """Return the number of images with captions of their own below a folder."""
    try:
        return Pairing(folder).size
    except SourceError:
        return 0


def tables_beside_images_error(folder: str, contents: Contents, options: SourceOptions) -> SourceError:
    """Return the error for a folder of tables and images: it names the tables that can be read, and the command."""
    candidates = [(known, file) for known in source_formats() for file in sorted(contents.files[known.name])][
        :_MAX_TRIED
    ]
    ranks = {file: _rank(known, file, options) for known, file in candidates}
    usable = sorted((file for file in ranks if ranks[file]), key=lambda file: -ranks[file])
    files = usable or list(ranks)
    shown = ", ".join(os.path.relpath(file, folder) for file in files[:_SHOWN])
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return SourceError(
        f"{folder} holds {contents.num_images:,} images without captions of their own, and tables beside them",
        found=f"{shown}{more}" + ("" if usable else ", none of which names its images and captions as expected"),
        allowed="one of the tables, which names its images; or a caption template over the names of folders",
        next_step=f"lakeclip ingest {shlex.quote(files[0])} LAKE" + ("" if usable else " --image-column NAME"),
    )


def _rank(known: SourceFormat, file: str, options: SourceOptions) -> int:
    """Return 2 if a table names images and captions, 1 if it names images only, and 0 otherwise."""
    try:
        sources = list(known.open([file], options.with_parts([os.path.basename(file)])))
    except LakeclipError:
        return 0
    return 2 if any(source.mapping.get("caption", "none") != "none" for source in sources) else 1
