"""Karpathy's splits of COCO, Flickr8k and Flickr30k, such as `dataset_coco.json` (https://arxiv.org/abs/1412.2306)."""

from __future__ import annotations

from lakeclip.ingestion.sources.annotations.layout import CAPTIONS, PATH, Layout, Rows, dicts_in, texts_in


def _matches(content: dict[str, object]) -> bool:
    return any("sentences" in image for image in dicts_in(content.get("images"))[:1])


def _read(content: dict[str, object]) -> Rows:
    rows: list[dict[str, object] | str] = []
    num_captions = 0
    for image in dicts_in(content["images"]):
        folder, name = image.get("filepath"), image.get("filename")
        path = f"{folder}/{name}" if folder else name
        captions = [text for sentence in dicts_in(image.get("sentences")) for text in _sentence(sentence)]
        num_captions += len(captions)
        others = {
            column: value
            for column, value in image.items()
            if column not in ("filepath", "filename") and not isinstance(value, (list, dict))
        }
        rows.append({PATH: path, CAPTIONS: captions, **others} if captions else f"no caption: {path}")
    return Rows(rows, "image", ["Karpathy split: one row per image, with all of its sentences"], num_captions)


def _sentence(sentence: dict[str, object]) -> list[str]:
    return texts_in(sentence.get("raw")) or texts_in(" ".join(texts_in(sentence.get("tokens", []))))


LAYOUT = Layout("Karpathy split", _matches, _read)
