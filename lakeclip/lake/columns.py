"""Which column of a lake holds the images, and which the captions: found by name and type, or named by the user."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lakeclip.errors import LakeError

#: Names in order of preference; compared without regard to case.
IMAGE_NAMES = ("image", "images", "img", "imgs", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes")
CAPTION_NAMES = (
    "captions",
    "caption",
    "text",
    "texts",
    "txt",
    "sentences",
    "sentence",
    "alt_text",
    "alt",
    "description",
    "title",
    "prompt",
)
URL_NAMES = (
    "url",
    "image_url",
    "img_url",
    "imageurl",
    "image_link",
    "link",
    "urls",
    "original_url",
    "uri",
    "src",
)
#: … of columns with names of image files.
PATH_NAMES = (
    "filepath",
    "file_path",
    "image_path",
    "img_path",
    "path",
    "file_name",
    "filename",
    "image_file",
    "image_name",
    "file",
)


def type_names(dataset: Any) -> dict[str, str]:
    """Column name → type, in plain words: "text", "bytes", "int64", "image", "link[image]", "sequence[text]", …"""
    return {definition.name: _type_name(definition.dtype) for definition in dataset.schema.columns}


def _type_name(dtype: Any) -> str:
    if dtype.is_sequence:
        return f"sequence[{'image' if dtype.is_image else dtype.id}]"
    if dtype.is_link:
        return f"link[{'image' if dtype.is_image else dtype.id}]"
    if dtype.is_image:
        return "image"
    kind = str(dtype.kind).rpartition(".")[2]
    if kind == "Text":
        return "text"
    return str(dtype)


def is_readable(type_name: str) -> bool:
    """Whether a column may be read at all: a sequence takes the process down in half of all runs."""
    return not type_name.startswith("sequence[")


def find_image_column(columns: dict[str, str], wanted: str | None, path: str) -> str:
    """The column with encoded images.

    Args:
        columns: name → type.
        wanted: the user's choice, if there is one.
        path: the lake's path, for errors.

    Raises:
        LakeError: there is none, or the one that was chosen is not usable; the columns are listed.
    """
    usable = {name for name, kind in columns.items() if kind in ("bytes", "image")}
    if wanted is not None:
        return _chosen(wanted, "image", usable, columns, path, "image or bytes")
    if found := match_name(usable, IMAGE_NAMES):
        return found
    images = [name for name in usable if columns[name] == "image"]
    if len(images) == 1:
        return images[0]
    links = [name for name, kind in columns.items() if kind == "link[image]" or name.lower() == "url"]
    raise LakeError(
        f"the lake at {path} has no usable image column",
        found=list_columns(columns),
        allowed="a column of type image or bytes, called image, images, img, jpg, …",
        next_step=f"{', '.join(links)} holds addresses, not images: lakeclip ingest --download {path} NEW_LAKE"
        if links
        else "name the column with --image-column",
    )


def find_caption_column(columns: dict[str, str], wanted: str | None, path: str) -> str:
    """The column with captions: see `find_image_column`."""
    usable = {name for name, kind in columns.items() if kind == "text"}
    if wanted is not None:
        return _chosen(wanted, "caption", usable, columns, path, "text")
    if found := match_name(usable, CAPTION_NAMES):
        return found
    raise LakeError(
        f"the lake at {path} has no usable caption column",
        found=list_columns(columns),
        allowed="a column of type text, called captions, caption, text, …",
        next_step="name the column with --caption-column",
    )


def list_columns(columns: dict[str, str]) -> str:
    """All columns with their types, on one line."""
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "no columns"


def match_name(usable: Collection[str], names: tuple[str, ...]) -> str | None:
    """Of the columns that are usable, the one whose name comes first among these names; None if none has any."""
    for name in names:
        matches = sorted(column for column in usable if column.lower() == name)
        if matches:
            return name if name in matches else matches[0]
    return None


def _chosen(wanted: str, role: str, usable: set[str], columns: dict[str, str], path: str, types: str) -> str:
    if wanted in usable:
        return wanted
    what = f"is of type {columns[wanted]}" if wanted in columns else "does not exist"
    raise LakeError(
        f"the {role} column {wanted!r} {what} in the lake at {path}",
        found=list_columns(columns),
        allowed=f"a column of type {types}",
    )
