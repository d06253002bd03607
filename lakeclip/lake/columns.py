"""Find a lake's image and caption columns by name and type, unless the user names them."""

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
#: Of columns with the names of image files.
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
    """Return column name → type name: "text", "bytes", "int64", "image", "link[image]", "sequence[text]", …"""
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
    """Return True if a column can be read safely: reading a sequence crashes the process in half of all runs."""
    return not type_name.startswith("sequence[")


def find_image_column(columns: dict[str, str], chosen: str | None, path: str) -> str:
    """Return the name of the column with encoded images.

    Args:
        columns: name → type.
        chosen: the user's choice, if there is one.
        path: the lake's path, for errors.

    Raises:
        LakeError: no column is usable, or the chosen one is not; the columns are listed.
    """
    usable = {name for name, kind in columns.items() if kind in ("bytes", "image")}
    if chosen is not None:
        return _check_chosen(chosen, "image", usable, columns, path, "image or bytes")
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


def find_caption_column(columns: dict[str, str], chosen: str | None, path: str) -> str:
    """Return the name of the column with captions; see `find_image_column`."""
    usable = {name for name, kind in columns.items() if kind == "text"}
    if chosen is not None:
        return _check_chosen(chosen, "caption", usable, columns, path, "text")
    if found := match_name(usable, CAPTION_NAMES):
        return found
    raise LakeError(
        f"the lake at {path} has no usable caption column",
        found=list_columns(columns),
        allowed="a column of type text, called captions, caption, text, …",
        next_step="name the column with --caption-column",
    )


def list_columns(columns: dict[str, str]) -> str:
    """Return all columns with their types, on one line."""
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "no columns"


def match_name(usable: Collection[str], names: tuple[str, ...]) -> str | None:
    """Return the usable column whose name comes first among these names; None if no column has one of them.

    Case is ignored.
    """
    for name in names:
        matches = sorted(column for column in usable if column.lower() == name)
        if matches:
            return name if name in matches else matches[0]
    return None


def _check_chosen(name: str, role: str, usable: set[str], columns: dict[str, str], path: str, types: str) -> str:
    if name in usable:
        return name
    problem = f"is of type {columns[name]}" if name in columns else "does not exist"
    raise LakeError(
        f"the {role} column {name!r} {problem} in the lake at {path}",
        found=list_columns(columns),
        allowed=f"a column of type {types}",
    )
