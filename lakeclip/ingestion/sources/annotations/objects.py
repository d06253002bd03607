"""JSON objects without a layout of their own: captions by the names of images, a list in an object, pandas' columns."""

from __future__ import annotations

from lakeclip.ingestion.sources.annotations.layout import CAPTIONS, PATH, Layout, Rows, dicts_in, texts_in
from lakeclip.lake.columns import IMAGE_NAMES, PATH_NAMES, URL_NAMES, match_name
from lakeclip.lake.images import image_suffixes, suffix_of


def _names_images(content: dict[str, object]) -> bool:
    return any(suffix_of(name) in image_suffixes() for name in list(content)[:100]) and all(
        value is None or isinstance(value, (str, list)) for value in content.values()
    )


def _read_captions_by_name(content: dict[str, object]) -> Rows:
    rows: list[dict[str, object] | str] = [
        {PATH: name, CAPTIONS: texts} if (texts := texts_in(value)) else f"caption is empty: {name}"
        for name, value in content.items()
    ]
    return Rows(rows, "image", ["names of images with their captions"])


def is_row(content: object) -> bool:
    """Return whether an object is itself about one image."""
    if not isinstance(content, dict):
        return False
    name = match_name(content, (*IMAGE_NAMES, *PATH_NAMES, *URL_NAMES))
    return name is not None and isinstance(content[name], str)


def _objects(content: dict[str, object]) -> list[object]:
    """Return the objects in the only array of objects, or the rows of a table as pandas writes it."""
    if is_row(content):
        return []
    names, data = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(data, list):
        return [dict(zip(map(str, names), row, strict=False)) for row in data if isinstance(row, list)]
    arrays = [value for value in content.values() if dicts_in(value)]
    if len(arrays) == 1 and isinstance(arrays[0], list):
        return arrays[0]
    if len(content) < 2:
        return []
    by_key = {name: values for name, values in content.items() if isinstance(values, dict)}
    if len(by_key) == len(content):
        keys = dict.fromkeys(key for values in by_key.values() for key in values)
        return [{name: values.get(key) for name, values in by_key.items()} for key in keys]
    in_order = {name: values for name, values in content.items() if isinstance(values, list)}
    if len(in_order) == len(content) and len({len(values) for values in in_order.values()}) == 1:
        return [dict(zip(in_order, row, strict=True)) for row in zip(*in_order.values(), strict=True)]
    return []


def _read_objects(content: dict[str, object]) -> Rows:
    rows: list[dict[str, object] | str] = [
        {str(name): value for name, value in item.items()}
        if isinstance(item, dict)
        else f"not a JSON object: {item!r:.60}"
        for item in _objects(content)
    ]
    others = [name for name, value in content.items() if not dicts_in(value)] if _has_one_array(content) else []
    remarks = [f"the rows are the objects in one list; not used: {', '.join(others)}"] if others else []
    return Rows(rows, "object", remarks)


def _has_one_array(content: dict[str, object]) -> bool:
    return sum(bool(dicts_in(value)) for value in content.values()) == 1


CAPTIONS_BY_NAME = Layout("names of images with their captions", _names_images, _read_captions_by_name)
OBJECTS = Layout("a list of objects", lambda content: bool(_objects(content)), _read_objects)
