"""COCO's captions: `images` with a name and an id, and `annotations` with the id of an image and a caption.

nocaps, VizWiz, and others have the same layout (https://cocodataset.org/#format-data).
"""

from __future__ import annotations

from collections import Counter, defaultdict

from lakeclip.ingestion.sources.annotations.layout import CAPTIONS, PATH, Layout, Rows, dicts_in, texts_in


def _matches(content: dict[str, object]) -> bool:
    images = dicts_in(content.get("images"))
    return bool(images) and "sentences" not in images[0] and ("file_name" in images[0] or "annotations" in content)


def _read(content: dict[str, object]) -> Rows:
    images, annotations = dicts_in(content["images"]), dicts_in(content.get("annotations"))
    if not any("caption" in annotation for annotation in annotations):
        raise ValueError(_what_it_holds(content, annotations))
    captions: defaultdict[str, list[str]] = defaultdict(list)
    dropped: Counter[str] = Counter()
    known = {_id(image.get("id")) for image in images}
    for annotation in annotations:
        key, texts = _id(annotation.get("image_id")), texts_in(annotation.get("caption"))
        if key not in known:
            dropped["caption of an image that is not listed"] += 1
        elif not texts:
            dropped["caption is empty"] += 1
        else:
            captions[key] += texts
    rows: list[dict[str, object] | str] = []
    seen: set[str] = set()
    for image in images:
        key, name = _id(image.get("id")), image.get("file_name")
        if key in seen:
            rows.append(f"image id is not unique: {key}")
        elif key not in captions:
            rows.append(f"no caption: {name}")
        else:
            others = {column: value for column, value in image.items() if column not in ("file_name", "id")}
            rows.append({PATH: name, CAPTIONS: captions[key], "image_id": image.get("id"), **others})
        seen.add(key)
    return Rows(
        rows, "image", ["COCO captions: one row per image, with all of its captions"], len(annotations), dropped
    )


def _id(value: object) -> str:
    """Return an id as text: some files have numbers in one list and texts in the other."""
    return str(value)


def _what_it_holds(content: dict[str, object], annotations: list[dict[str, object]]) -> str:
    if not annotations:
        return "images without annotations, as in a test set"
    kind = "keypoints" if "keypoints" in annotations[0] else "boxes or masks of objects"
    categories = len(dicts_in(content.get("categories")))
    return f"{len(annotations):,} {kind} in {categories:,} categories, and no captions"


LAYOUT = Layout("COCO captions", _matches, _read)
