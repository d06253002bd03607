"""Column roles: infer which column holds images, URLs and captions, and convert rows to samples."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from lakeclip.errors import SourceError
from lakeclip.ingestion.sources.base import Sample
from lakeclip.ingestion.sources.caption_values import CaptionReader, captions_in
from lakeclip.ingestion.sources.csv_layout import is_image_location, is_prose, is_url
from lakeclip.ingestion.sources.embedded_images import decode_image, is_embedded_image, is_image
from lakeclip.ingestion.sources.image_files import ImageFinder
from lakeclip.lake.columns import CAPTION_NAMES, IMAGE_NAMES, PATH_NAMES, URL_NAMES, list_columns, match_name
from lakeclip.lake.folder.records import Rejected
from lakeclip.lake.images import image_suffixes, suffix_of

#: Column types that can hold encoded images: bytes, a struct of bytes and path, lists of either.
_IMAGE_TYPES = ("bytes", "image", "list of bytes", "list of image")
#: Column types that can hold file names or URLs of images.
_LOCATION_TYPES = ("text", "link[image]")
_TEXT_TYPES = ("text", "list of text")
#: Words of a column's name, `photo_image_url` or `imageURL`.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PICTURES = frozenset({"image", "images", "img", "photo", "picture", "pic"})
_ADDRESSES = frozenset({"url", "urls", "link", "uri", "src", "href"})
_CAPTION_WORDS = ("caption", "captions", "description", "sentence", "sentences", "comment", "alt", "prompt", "text")
#: Further names, less telling than `columns.CAPTION_NAMES`.
_OTHER_CAPTION_NAMES = ("comment", "comments", "raw")
_HOW_TO_CHOOSE = "--image-column and --caption-column decide"


@dataclass(frozen=True)
class Roles:
    """Column names by role; "" if no column has the role.

    Attributes:
        image: encoded images.
        path: file names of images, or URLs: each value may be either.
        url: URLs of images.
        captions: reader of the captions; its `names` are their columns.
        kept: columns that become metadata.
        mapping: the same for display: role → column.
        notes: what was guessed, for messages.
    """

    image: str
    path: str
    url: str
    captions: CaptionReader
    kept: tuple[str, ...]
    mapping: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def used(self) -> set[str]:
        """The columns to read."""
        names = {self.image, self.path, self.url, *self.captions.names, *self.captions.template_names, *self.kept}
        return names - {""}

    @property
    def texts(self) -> set[str]:
        """The columns with captions and locations, whose values are texts even if they look like numbers."""
        return {self.path, self.url, *self.captions.names} - {""}


def infer_roles(
    columns: Mapping[str, str],
    table: str,
    *,
    image_column: str | None = None,
    caption_columns: Sequence[str] = (),
    caption_template: str | None = None,
    files: bool = True,
    sample: Sequence[Mapping[str, object]] = (),
    has_image: Callable[[str], bool] | None = None,
) -> Roles:
    """Infer the roles of columns from their names and types, and revise the result by the values of some rows.

    Args:
        columns: name → type: "text", "list of text", "bytes", "image" (bytes, or a struct of bytes and path),
            "list of bytes", "list of image", "link[image]"; columns of any other type become metadata.
        table: name of the table, for messages.
        image_column: the user's choice of the column with images, URLs or file names.
        caption_columns: the user's choice of the columns with captions.
        caption_template: caption with names of columns in braces.
        files: whether file names are allowed; a lake has no folder that they could be relative to.
        sample: some rows, column → value.
        has_image: function that returns whether a file name is that of an image.

    Raises:
        SourceError: no column is suitable, or the chosen one is not; the message lists the columns.
    """
    notes: list[str] = []
    locations = [name for name, kind in columns.items() if kind in _LOCATION_TYPES]
    images = [name for name, kind in columns.items() if kind in _IMAGE_TYPES]
    if image_column is not None:
        numbers = [name for name, kind in columns.items() if files and kind in ("int", "int64", "int32")]
        _check_choice(image_column, "image", [*images, *locations, *numbers], columns, table, "bytes or text")
        image = image_column if image_column in images else ""
        # Each value of a text column may be a file name or a URL.
        path = image_column if not image and files else ""
        url = (_find_url(locations) or "") if image else image_column if not files else ""
    else:
        typed = [name for name in images if columns[name] == "image"]
        image = match_name(images, IMAGE_NAMES) or (typed[0] if len(typed) == 1 else "")
        links = [name for name in locations if columns[name] == "link[image]"]
        url = _find_url(locations) or (links[0] if links else "")
        path = (match_name(locations, PATH_NAMES) or match_name(locations, IMAGE_NAMES) or "") if files else ""
        if not image:
            path, url = _revise_location(path, url, locations, sample, files, notes)
        if not (image or path or url) and has_image is not None:
            path = _find_names(columns, sample, has_image, notes)
    if not (image or path or url):
        raise SourceError(
            f"{table} has no column with images, their URLs or their file names",
            found=list_columns(dict(columns)),
            allowed="bytes in a column called image, jpg, …; URLs in a column called url, …; "
            "file names in a column called filepath, file_name, …",
            next_step="--image-column NAME",
        )
    usable = {name: kind for name, kind in columns.items() if name != image and kind not in _IMAGE_TYPES}
    for name in caption_columns:
        _check_choice(name, "caption", list(usable), columns, table, "text")
    names = tuple(caption_columns) or _find_captions(usable, (path, url), sample, notes)
    if caption_template is not None:
        captions = CaptionReader(names, caption_template)
        _check_template(captions, usable, caption_template, table)
    else:
        captions = CaptionReader(names)
    kept = tuple(name for name in usable if name not in names)
    if not names and not captions.template_names and not set(kept) - {path, url}:
        raise SourceError(
            f"{table} has neither captions nor other data about its images",
            found=list_columns(dict(columns)),
            allowed="a text column called captions, caption, text, …",
            next_step="--caption-column NAME",
        )
    may_be_url = path and match_name([path], PATH_NAMES) is None
    mapping = {"image": image, ("image file or address" if may_be_url else "image file"): path, "image address": url}
    mapping = {role: name for role, name in mapping.items() if name}
    mapping["caption"] = f"template {caption_template!r}" if caption_template else ", ".join(names) or "none"
    if others := [name for name in kept if name not in (path, url)]:
        mapping["also kept"] = ", ".join(others)
    return Roles(image, path, url, captions, kept, mapping, notes)


def _check_choice(
    choice: str, role: str, suitable: list[str], columns: Mapping[str, str], table: str, types: str
) -> None:
    if choice not in suitable:
        problem = f"is of type {columns[choice]}" if choice in columns else "does not exist"
        raise SourceError(
            f"the {role} column {choice!r} {problem} in {table}",
            found=list_columns(dict(columns)),
            allowed=f"a column of type {types}",
        )


def _check_template(captions: CaptionReader, usable: Mapping[str, str], template: str, table: str) -> None:
    unknown = [name for name in captions.template_names if name not in usable and name.partition(".")[0] not in usable]
    if unknown:
        raise SourceError(
            f"the caption template {template!r} cannot be used on {table}",
            found=f"no column {', '.join(unknown)}",
            allowed=f"names in braces from {list_columns(dict(usable))}",
            next_step="--caption-template 'a photo of {NAME}'",
        )


def _find_url(locations: Sequence[str]) -> str | None:
    """Return the column with addresses of images: `image_url` rather than `url`, which may be that of a page."""
    pictures = [name for name in locations if _PICTURES & (words := _words(name)) and _ADDRESSES & words]
    return match_name(pictures, URL_NAMES) or (pictures[0] if pictures else None) or match_name(locations, URL_NAMES)


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORDS.findall(name)}


def _revise_location(
    path: str, url: str, locations: Sequence[str], sample: Sequence[Mapping[str, object]], files: bool, notes: list[str]
) -> tuple[str, str]:
    """Choose another column if the values of this one cannot be images, and those of the other are."""
    shares = {name: _image_share([row.get(name) for row in sample]) for name in locations}
    chosen = [name for name in (path, url) if name]
    if not any(shares.values()) or any(shares[name] >= 0.5 for name in chosen):
        return path, url
    best = max(locations, key=lambda name: shares[name])
    if shares[best] < 0.5:
        return path, url
    if chosen:
        notes.append(f"{' and '.join(chosen)} of the first rows are no images, {best} is; {_HOW_TO_CHOOSE}")
    else:
        notes.append(f"images are in {best}, as its values show; {_HOW_TO_CHOOSE}")
    return (best, "") if files else ("", best)


def _find_names(
    columns: Mapping[str, str],
    sample: Sequence[Mapping[str, object]],
    has_image: Callable[[str], bool],
    notes: list[str],
) -> str:
    """Return the column whose values are the names of image files, without suffix perhaps; "" if there is none."""
    for name, kind in columns.items():
        values = [str(value).strip() for row in sample[:20] if (value := row.get(name)) not in (None, "")]
        if kind in ("text", "int", "int64", "int32") and values and all(map(has_image, values)):
            notes.append(f"{name} holds the names of image files; {_HOW_TO_CHOOSE}")
            return name
    return ""


def _image_share(values: Sequence[object]) -> float:
    """Return the share of values that are images, addresses or names of image files, by their suffixes."""
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    return sum(map(_names_image, texts)) / len(texts) if texts else 0.0


def _names_image(text: str) -> bool:
    if is_embedded_image(text):
        return True
    if not is_url(text):
        return is_image_location(text)
    try:
        return suffix_of(urlsplit(text).path) in image_suffixes()
    except ValueError:
        return False


def _find_captions(
    usable: Mapping[str, str], taken: Sequence[str], sample: Sequence[Mapping[str, object]], notes: list[str]
) -> tuple[str, ...]:
    """Return the columns with captions: by a known name, else by a similar one, else the only one with sentences."""
    texts = [name for name, kind in usable.items() if kind in _TEXT_TYPES and name not in taken]
    if found := match_name(texts, CAPTION_NAMES) or match_name(texts, _OTHER_CAPTION_NAMES):
        return (found,)
    nested = [name for name, kind in usable.items() if kind not in _TEXT_TYPES and name not in taken]
    if (found := match_name(nested, CAPTION_NAMES[:3])) and any(captions_in(row.get(found)) for row in sample):
        return (found,)
    numbered = [name for name in texts if re.fullmatch(rf"({'|'.join(_CAPTION_WORDS)})[ _.-]?\d+", name.lower())]
    if numbered:
        notes.append(f"captions are in {', '.join(numbered)}; {_HOW_TO_CHOOSE}")
        return tuple(numbered)
    similar = [name for word in _CAPTION_WORDS for name in texts if word in _words(name)]
    sentences = [name for name in texts if is_prose([row.get(name) for row in sample])]
    choice = next((name for name in similar if name in sentences), None)
    choice = choice or (sentences[0] if len(sentences) == 1 else None)
    if choice is not None:
        notes.append(f"captions are in {choice}, as its name or its values show; {_HOW_TO_CHOOSE}")
        return (choice,)
    return ()


def to_sample(
    key: str,
    name: str,
    values: Mapping[str, object],
    roles: Roles,
    images: ImageFinder | None = None,
    extra: Mapping[str, object] | None = None,
) -> Sample | Rejected:
    """Convert a row of a table to a sample.

    A row with an empty caption is kept, without caption, if it has data besides its image (in a labelled test set, for
    example).

    Args:
        key: key of the sample.
        name: name of the row for messages, in case that it is rejected.
        values: column → value; a missing value is None or absent.
        roles: roles of the columns.
        images: finder of image files by their names; None if file names are not allowed.
        extra: further metadata.
    """
    image, url, problem, embedded = _read_image(values, roles, images)
    if not image and not url:
        return Rejected(name, problem)
    captions = roles.captions.read(values)
    metadata = {column: plain(values.get(column)) for column in roles.kept if column not in embedded}
    if not captions and all(
        value is None or value == "" for column, value in metadata.items() if column not in (roles.path, roles.url)
    ):
        has_captions = roles.captions.names or roles.captions.template_names
        return Rejected(name, "caption is empty" if has_captions else "no caption")
    return Sample(key, image, captions, {**metadata, **(extra or {})}, url)


def _read_image(
    values: Mapping[str, object], roles: Roles, images: ImageFinder | None
) -> tuple[bytes, str, str, list[str]]:
    """Return the image of a row, its URL, if there is neither, the reason, and the columns with images as text."""
    value = values.get(roles.image)
    if isinstance(value, list):
        if len(value) > 1:
            return b"", "", f"{len(value)} images in one row", []
        value = value[0] if value else None
    locations: list[tuple[str, object]] = [("", value)] if isinstance(value, str) else []
    if isinstance(value, Mapping):
        locations = [("", value.get("path"))]
        value = value.get("bytes")
        if isinstance(value, str):
            locations.insert(0, ("", value))
    image = value if isinstance(value, bytes) else b""
    if image and not is_image(image[:16]) and image[:96].isascii() and is_embedded_image(image[:96].decode("ascii")):
        decoded = decode_image(image.decode("ascii", "replace"))
        image = decoded if isinstance(decoded, bytes) else image
    url, problem, embedded = "", "", []
    for column, location in (*locations, (roles.path, values.get(roles.path)), (roles.url, values.get(roles.url))):
        text = location.decode("utf-8", "replace") if isinstance(location, bytes) else location
        if isinstance(text, (int, float)) and not isinstance(text, bool):
            text = str(text)  # a number that is the stem of an image's name
        if not isinstance(text, str) or not text.strip():
            continue
        text = text.strip()
        if is_url(text):
            url = url or text
            continue
        if is_embedded_image(text):
            embedded.append(column)
            data = decode_image(text) if not image else b""
        elif image:
            continue
        elif images is None:
            problem = problem or f"not an address: {text[:100]}"
            continue
        else:
            data = images.read(text)
        if isinstance(data, bytes):
            image = image or data
        else:
            problem = problem or data
    return image, url, problem or "no image in this row", embedded


def plain(value: object) -> object:
    """Convert a value to metadata: text, a number, None, or lists and dictionaries of these. NaN becomes None."""
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
