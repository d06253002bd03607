"""What the columns of a table are for, and how one of its rows becomes a sample."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lakeclip.errors import SourceError
from lakeclip.lake.columns import CAPTION_NAMES, IMAGE_NAMES, PATH_NAMES, URL_NAMES, list_columns, match_name
from lakeclip.lake.schema import load_captions
from lakeclip.lake.sources.base import Rejected, Sample
from lakeclip.lake.sources.folder import read_file

#: Types of columns with encoded images: plain bytes, a struct of bytes and path, lists of either.
_IMAGES = ("bytes", "image", "list of bytes", "list of image")
#: … with captions; and with names or addresses of images.
_CAPTIONS = ("text", "list of text")
_PLACES = ("text", "link[image]")

_ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://\S+")


class Roles(NamedTuple):
    """Which column is for what; "" where there is none.

    Attributes:
        image: encoded images.
        path: names of image files (or addresses: each value is looked at).
        url: addresses of images.
        caption: captions.
        kept: columns that become metadata.
        mapping: the same for people: what is taken → from which column.
    """

    image: str
    path: str
    url: str
    caption: str
    kept: tuple[str, ...]
    mapping: dict[str, str]


def is_address(text: str) -> bool:
    """Whether a text is an address (https://…, s3://…) rather than the name of a file."""
    return _ADDRESS.match(text) is not None


def find_roles(
    columns: Mapping[str, str],
    where: str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    files: bool = True,
) -> Roles:
    """Find out what columns are for, by their names and types.

    Args:
        columns: name → type: "text", "list of text", "bytes", "image" (bytes, or a struct of bytes and path),
            "list of bytes", "list of image", "link[image]"; any other is metadata.
        where: the table, for errors.
        image_column: the user's choice of what holds the images: bytes, addresses or names of files.
        caption_column: the user's choice of what holds the captions.
        files: whether names of files mean anything; they do not in a lake.

    Raises:
        SourceError: no column fits, or the one that was chosen does not; the columns are listed.
    """
    places = [name for name, kind in columns.items() if kind in _PLACES]
    pictures = [name for name, kind in columns.items() if kind in _IMAGES]
    if image_column is not None:
        _check_choice(image_column, "image", [*pictures, *places], columns, where, "bytes or text")
        image = image_column if image_column in pictures else ""
        # What a text is, a name or an address, its values say.
        path = image_column if not image and files else ""
        url = (match_name(places, URL_NAMES) or "") if image else image_column if not files else ""
    else:
        typed = [name for name in pictures if columns[name] == "image"]
        image = match_name(pictures, IMAGE_NAMES) or (typed[0] if len(typed) == 1 else "")
        links = [name for name in places if columns[name] == "link[image]"]
        url = match_name(places, URL_NAMES) or (links[0] if links else "")
        path = (match_name(places, PATH_NAMES) or match_name(places, IMAGE_NAMES) or "") if files else ""
    if not (image or path or url):
        raise SourceError(
            f"{where} has no column that holds images, their addresses or their files",
            found=list_columns(dict(columns)),
            allowed="bytes in a column called image, jpg, …; addresses in one called url, …; "
            "names of files in one called filepath, file_name, …",
            next_step="--image-column NAME",
        )
    if caption_column is not None:
        texts = [name for name, kind in columns.items() if kind in _CAPTIONS]
        _check_choice(caption_column, "caption", texts, columns, where, "text")
        caption = caption_column
    else:
        texts = [name for name, kind in columns.items() if kind in _CAPTIONS and name not in (path, url)]
        caption = match_name(texts, CAPTION_NAMES) or ""
    kept = tuple(name for name, kind in columns.items() if name not in (image, caption) and kind not in _IMAGES)
    if not caption and not set(kept) - {path, url}:
        raise SourceError(
            f"{where} has neither captions nor anything else to say of its images",
            found=list_columns(dict(columns)),
            allowed="a column of text called captions, caption, text, …",
            next_step="--caption-column NAME",
        )
    either = path and match_name([path], PATH_NAMES) is None
    mapping = {"image": image, ("image file or address" if either else "image file"): path, "image address": url}
    mapping = {role: name for role, name in mapping.items() if name}
    mapping["caption"] = caption or "none"
    if others := [name for name in kept if name not in (path, url)]:
        mapping["also kept"] = ", ".join(others)
    return Roles(image, path, url, caption, kept, mapping)


def _check_choice(
    wanted: str, role: str, usable: list[str], columns: Mapping[str, str], where: str, types: str
) -> None:
    if wanted not in usable:
        what = f"is of type {columns[wanted]}" if wanted in columns else "does not exist"
        raise SourceError(
            f"the {role} column {wanted!r} {what} in {where}",
            found=list_columns(dict(columns)),
            allowed=f"a column of type {types}",
        )


def to_sample(
    key: str, name: str, values: Mapping[str, object], roles: Roles, folder: str | None = None
) -> Sample | Rejected:
    """A row of a table as a sample.

    A row whose caption is empty is kept, with none, if it has anything besides its image (a labelled test set).

    Args:
        key: the sample's.
        name: what to call the row if it is rejected.
        values: the row, by column; a missing value is None, or not there.
        roles: what the columns are for.
        folder: where names of files start; None if there are no files.
    """
    image, url, why = _find_image(values, roles, folder)
    if not image and not url:
        return Rejected(name, why)
    captions = _captions(values.get(roles.caption), roles.caption)
    metadata = {column: plain(values.get(column)) for column in roles.kept}
    if not captions and all(
        value is None or value == "" for column, value in metadata.items() if column not in (roles.path, roles.url)
    ):
        return Rejected(name, "caption is empty" if roles.caption else "no caption")
    return Sample(key, image, captions, metadata, url)


def _find_image(values: Mapping[str, object], roles: Roles, folder: str | None) -> tuple[bytes, str, str]:
    """A row's image, its address, and, if there is neither, why."""
    found = values.get(roles.image)
    if isinstance(found, list):
        if len(found) > 1:
            return b"", "", f"{len(found)} images in one row"
        found = found[0] if found else None
    places = [values.get(roles.path), values.get(roles.url)]
    if isinstance(found, Mapping):
        places.insert(0, found.get("path"))
        found = found.get("bytes")
    image = found if isinstance(found, bytes) else b""
    url, why = "", ""
    for place in places:
        text = place.decode("utf-8", "replace") if isinstance(place, bytes) else place
        if not isinstance(text, str) or not text.strip():
            continue
        text = text.strip()
        if is_address(text):
            url = url or text
        elif not image and folder is None:
            why = why or f"not an address: {text[:100]}"
        elif not image and folder is not None:
            data = _read(os.path.join(folder, text.removeprefix("file://")))
            if isinstance(data, bytes):
                image = data
            else:
                why = why or f"{data} ({text[:100]})"
    return image, url, why or "no image in this row"


def _read(path: str) -> bytes | str:
    try:
        return read_file(path)
    except ValueError as error:  # a zero byte in the name
        return f"cannot be read: {error}"


def _captions(value: object, column: str) -> tuple[str, ...]:
    if isinstance(value, str):
        texts: tuple[object, ...] = load_captions(value) if column.lower() == "captions" else (value,)
    else:
        texts = tuple(value) if isinstance(value, (list, tuple)) else ()
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def plain(value: object) -> object:
    """A value as metadata holds it: text, a number, None, or lists and dictionaries of these. NaN is missing."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(part) for part in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
